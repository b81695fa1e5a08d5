# Linear probe: the backbone stays as it is, and so do the images.
_base_ = ['./fastitpn-demo-p16_itpn-pixel-1600i-pre_1xb64-coslr-100i_digits-64px.py']

model = dict(backbone=dict(frozen_stages=3))
train_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=2e-2, weight_decay=0.0),
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=1.0),
)
