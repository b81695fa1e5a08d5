# The authors' fine-tuning of large models with CLIP supervision.
_base_ = './itpn_finetune_50e.py'

param_scheduler = _base_.param_scheduler
param_scheduler[1].update(eta_min_ratio=1e-6 / 2e-4)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
