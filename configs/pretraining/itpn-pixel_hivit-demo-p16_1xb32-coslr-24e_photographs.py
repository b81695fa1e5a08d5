# A small model on a thousand crops of photographs: minutes on two cores. See tools/demo.sh.
_base_ = [
    '../_base_/models/itpn_hivit-base-p16.py',
    '../_base_/schedules/itpn_adamw_300e.py',
    '../_base_/classification_runtime.py',
]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=256, depths=(1, 1, 4), num_heads=4), img_size=128
    ),
    neck=dict(in_channels=(64, 128, 256), out_channels=64, depth=1),
    decoder=dict(in_channels=64, embed_dims=128, depth=1, num_heads=4, img_size=128),
    head=dict(embed_dims=128),
    mfm_head=dict(stage_channels=(64, 128, 256), in_channels=128),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=128,
        crop_ratio_range=(0.4, 1.0),
        backend='cv2',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo/photographs',
        data_prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)

train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=3,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=21,
        by_epoch=True,
        begin=3,
        end=24,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor=_base_.optim_wrapper.constructor,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
    clip_grad=dict(max_norm=3.0),
)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=15),
    checkpoint=dict(interval=24, max_keep_ckpts=1),
)
randomness = dict(seed=0)
auto_scale_lr = dict(_delete_=True, base_batch_size=32)
