# The authors' fine-tuning of Fast-iTPN base and large.
_base_ = './fastitpn_finetune_100e.py'

train_cfg = dict(max_epochs=20)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=3)
param_scheduler[1].update(begin=3, end=20, T_max=17)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
