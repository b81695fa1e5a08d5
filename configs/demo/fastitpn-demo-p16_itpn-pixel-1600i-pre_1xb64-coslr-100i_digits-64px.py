# Fine-tuning on the digits; see tools/demo_digits.py.
_base_ = ['../_base_/classification_runtime.py']

classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='itpn_mm.FastiTPN',
        arch=dict(embed_dims=128, depths=(1, 1, 4), num_heads=4),
        img_size=64,
        layer_scale_init_value=None,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='work_dirs/demo/digits/photographs/pretrain/iter_1600.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=128),
    head=dict(
        type='LinearClsHead',
        in_channels=128,
        num_classes=10,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1,),
    ),
)
data_preprocessor = dict(
    num_classes=10,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=64, padding=8),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root='data/demo/digits', metainfo=dict(classes=classes))
# A list of fewer labels: `train_dataloader.dataset.ann_file=meta/train_10-per-class_seed0.txt`.
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        ann_file='meta/train.txt', data_prefix='train', pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(ann_file='meta/test.txt', data_prefix='test', pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator

# Iterations and not epochs: with few labels each image is seen more often. Nothing is chosen by
# the test part: it is evaluated once, after the last iteration.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=100)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', T_max=90, by_epoch=False, begin=10, end=100),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    # Positions start near zero, and so few steps would leave them there.
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        custom_keys=dict(pos_embed=dict(lr_mult=30.0, decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=3.0),
)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(by_epoch=False, interval=100, save_optimizer=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
