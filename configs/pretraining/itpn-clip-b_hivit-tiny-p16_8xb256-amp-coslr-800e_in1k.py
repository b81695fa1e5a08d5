_base_ = './itpn-clip-b_hivit-tiny-p16_8xb256-amp-coslr-300e_in1k.py'

train_cfg = dict(max_epochs=800)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=795, end=800)
