# A small UPerNet on 128-pixel tiles of one picture of nuclei: each level of the pyramid is joined
# by the backbone's map. See tools/demo.sh.
_base_ = [
    '../_base_/models/hivit-demo_tpn_segmentor.py',
    '../_base_/datasets/nuclei_semantic.py',
    '../_base_/schedules/demo_adamw_iterations.py',
]

norm_cfg = dict(type='BN', requires_grad=True)  # one process
loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
model = dict(
    neck=dict(concat_inputs=True, pool='max'),
    decode_head=dict(
        type='UPerHead',
        in_channels=[128, 192, 320, 320],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=64,
        dropout_ratio=0.1,
        num_classes=3,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=loss,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=320,
        in_index=2,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=3,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(loss_weight=0.4, **loss),
    ),
)

max_iters = 400  # the border is learnt late
train_cfg = dict(max_iters=max_iters, val_interval=100)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_iters, by_epoch=False, begin=0, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters))
