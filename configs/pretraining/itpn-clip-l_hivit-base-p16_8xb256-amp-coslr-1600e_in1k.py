_base_ = './itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-300e_in1k.py'

train_cfg = dict(max_epochs=1600)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=1595, end=1600)
