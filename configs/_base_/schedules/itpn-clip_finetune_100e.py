# The authors' fine-tuning of iTPN with CLIP supervision.
_base_ = './itpn_finetune_100e.py'

param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=20)
param_scheduler[1].update(begin=20, T_max=80, eta_min_ratio=1e-6 / 5e-4)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
