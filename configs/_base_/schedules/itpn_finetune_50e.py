# The authors' fine-tuning of large models.
_base_ = './itpn_finetune_100e.py'

train_cfg = dict(max_epochs=50)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(T_max=45, end=50, eta_min_ratio=5e-6 / 4e-3)
optim_wrapper = dict(optimizer=dict(lr=4e-3), paramwise_cfg=dict(layer_decay_rate=0.55))
