# MaskDINO with ResNet-50 for panoptic segmentation: 80 classes of things and 53 of stuff.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'

model = dict(
    type='itpn_mm.MaskDINO',
    data_preprocessor=dict(pad_size_divisor=64),  # maps of all strides cover the same
    panoptic_head=dict(
        _delete_=True,
        type='itpn_mm.MaskDINOHead',
        num_things_classes=80,
        num_stuff_classes=53,
        in_channels=[256, 512, 1024, 2048],
        num_queries=300,
        pixel_decoder=dict(num_levels=4, num_extra_levels=1, feedforward_channels=2048),
        denoising=dict(num_queries=100, noise_scale=0.4),
    ),
    panoptic_fusion_head=dict(type='itpn_mm.MaskDINOFusionHead'),
    train_cfg=dict(
        _delete_=True, num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75
    ),
    test_cfg=dict(
        _delete_=True,
        panoptic_on=True,
        instance_on=True,
        max_per_image=100,
        object_mask_thr=0.25,
        iou_thr=0.8,
    ),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        custom_keys=dict(backbone=dict(lr_mult=0.1), label_embed=dict(decay_mult=0.0)),
    ),
)
default_hooks = dict(
    checkpoint=dict(type='itpn_mm.AtomicCheckpointHook'),
    preflight=dict(type='itpn_mm.PreflightHook'),
    seed=dict(type='itpn_mm.SeedHook'),
    nonfinite=dict(type='itpn_mm.NonFiniteHook'),
)
