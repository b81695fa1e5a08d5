# A small model on 128-pixel tiles of one picture of nuclei: minutes on two cores. See
# tools/demo.sh.
_base_ = [
    '../_base_/models/mask-rcnn_hivit-base_tpn.py',
    '../_base_/datasets/nuclei.py',
    '../_base_/detection_runtime.py',
]

pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=256, depths=(1, 1, 4), num_heads=4),
        img_size=128,
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=(64, 128, 256), out_channels=64, depth=1, init_cfg=dict(checkpoint=pretrained)
    ),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            _delete_=True,
            type='Shared2FCBBoxHead',
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=1,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder',
                target_means=[0.0, 0.0, 0.0, 0.0],
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=1),
    ),
    train_cfg=dict(rcnn=dict(sampler=dict(num=128))),
)

max_epochs = 24
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, unit='attention'),
    clip_grad=dict(max_norm=5.0),
)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(interval=max_epochs, max_keep_ckpts=1),
)
randomness = dict(seed=0)
