# Integral pre-training of a very small Fast-iTPN on crops of photographs as small as the digits.
# See tools/demo_digits.py.
_base_ = ['../_base_/classification_runtime.py']

model = dict(
    type='itpn_mm.iTPN',
    data_preprocessor=dict(
        type='mmpretrain.SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='itpn_mm.FastiTPN',
        arch=dict(embed_dims=128, depths=(1, 1, 4), num_heads=4),
        img_size=64,
        layer_scale_init_value=None,
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(32, 64, 128),
        out_channels=32,
        out_strides=(4, 8, 16),
        depth=1,
        bias=True,
    ),
    masking=dict(type='itpn_mm.RandomMasking', ratio=0.75),
    decoder=dict(
        type='itpn_mm.MIMDecoder',
        in_channels=32,
        embed_dims=64,
        depth=1,
        num_heads=4,
        img_size=64,
    ),
    head=dict(type='itpn_mm.PixelReconstructionHead', embed_dims=64),
    mfm_head=dict(
        type='itpn_mm.MFMHead', stage_channels=(32, 64, 128), in_channels=64, loss_weight=0.3
    ),
    teacher=dict(type='itpn_mm.EMATeacher', momentum=0.996),
)
custom_hooks = [dict(type='itpn_mm.EMATeacherHook')]

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomResizedCrop',
        scale=64,
        crop_ratio_range=(0.2, 1.0),
        backend='cv2',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='data/demo/photographs',
        data_prefix='train',
        with_label=False,
        pipeline=train_pipeline,
    ),
)

# Iterations and not epochs, so that the two pools give the same number of images.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1600)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=160),
    dict(type='CosineAnnealingLR', T_max=1440, by_epoch=False, begin=160, end=1600),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    # Positions start near zero: a higher rate, for what is a short training.
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        custom_keys=dict(
            mask_token=dict(decay_mult=0.0), pos_embed=dict(lr_mult=3.0, decay_mult=0.0)
        ),
    ),
    clip_grad=dict(max_norm=3.0),
)
default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(by_epoch=False, interval=1600, save_optimizer=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
