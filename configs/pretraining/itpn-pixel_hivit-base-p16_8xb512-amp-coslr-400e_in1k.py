_base_ = './itpn-pixel_hivit-base-p16_8xb512-amp-coslr-300e_in1k.py'

train_cfg = dict(max_epochs=400)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=360, end=400)
