# A small Rotated Faster R-CNN that finds trees in aerial photographs rotated by known angles. See
# tools/demo.sh.
_base_ = 'mmrotate::rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota.py'

pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.HiViT',
        arch=dict(embed_dims=256, depths=(1, 1, 4), num_heads=4),
        img_size=128,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        _delete_=True,
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(64, 128, 256),
        out_channels=64,
        out_strides=(4, 8, 16, 32, 64),
        depth=1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=200),
        # Boxes of neighbouring trees overlap more than those of most objects of DOTA.
        rcnn=dict(nms=dict(iou_threshold=0.3), max_per_img=100),
    ),
)

data_root = 'data/demo/aerial_rotated/'
metainfo = dict(classes=('tree',))
train_pipeline = [
    dict(type='mmdet.LoadImageFromFile'),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    dict(type='mmdet.PhotoMetricDistortion'),  # no two photographs have the same light
    dict(type='mmdet.RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='mmdet.LoadImageFromFile'),
    dict(type='mmdet.Resize', scale_factor=1.0, keep_ratio=True),
    dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
    dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train/annfiles/',
        data_prefix=dict(img_path='train/images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val/annfiles/',
        data_prefix=dict(img_path='val/images/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(eval_mode='area')
test_evaluator = val_evaluator

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
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
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, unit='attention'),
    clip_grad=dict(max_norm=5.0),
)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(type='itpn_mm.AtomicCheckpointHook', interval=max_epochs, max_keep_ckpts=1),
    preflight=dict(type='itpn_mm.PreflightHook'),
    seed=dict(type='itpn_mm.SeedHook'),
    nonfinite=dict(type='itpn_mm.NonFiniteHook'),
)
randomness = dict(seed=0)
