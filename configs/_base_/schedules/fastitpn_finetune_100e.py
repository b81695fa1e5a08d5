# The authors' fine-tuning of Fast-iTPN at a batch of 1024: merges count as layers, and a moving
# average of the model is what is evaluated and kept.
_base_ = './itpn_finetune_100e.py'

param_scheduler = _base_.param_scheduler
param_scheduler[1].update(eta_min_ratio=1e-6 / 1e-4)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8, unit='layer'),
)
custom_hooks = [dict(type='mmpretrain.EMAHook', momentum=1e-4)]
