# MaskDINO with ResNet-50, the authors' recipe: one stage, 100 queries, a class for "no object".
_base_ = [
    '../_base_/datasets/ade20k_maskdino_512x512.py',
    '../_base_/schedules/maskdino_160k.py',
]

num_classes = 150
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    decode_head=dict(
        type='itpn_mm.MaskDINODecodeHead',
        num_classes=num_classes,
        in_channels=[256, 512, 1024, 2048],
        num_queries=100,
        pixel_decoder=dict(num_levels=3, feedforward_channels=1024),
        denoising=dict(num_queries=100, noise_scale=0.4),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            class_weight=[1.0] * num_classes + [0.1],
            loss_weight=4.0,
        ),
        train_cfg=dict(num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
