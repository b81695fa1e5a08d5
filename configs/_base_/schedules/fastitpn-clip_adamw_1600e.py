# CLIP-supervised pre-training of Fast-iTPN: longer, with a longer warm-up and clipped gradients.
_base_ = './itpn-clip_adamw_300e.py'

train_cfg = dict(max_epochs=1600)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=10)
param_scheduler[1].update(begin=10, T_max=1590, end=1600)
optim_wrapper = dict(clip_grad=dict(max_norm=3.0))
