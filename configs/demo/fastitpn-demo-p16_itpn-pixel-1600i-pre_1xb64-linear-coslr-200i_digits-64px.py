# Linear probe: the backbone stays as it is, and so do the images.
_base_ = ['./fastitpn-demo-p16_itpn-pixel-1600i-pre_1xb64-coslr-100i_digits-64px.py']

model = dict(backbone=dict(frozen_stages=3))
train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
train_cfg = dict(max_iters=200, val_interval=200)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', T_max=190, by_epoch=False, begin=10, end=200),
]
optim_wrapper = dict(
    optimizer=dict(lr=5e-2, weight_decay=0.0),
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
default_hooks = dict(checkpoint=dict(interval=200))
