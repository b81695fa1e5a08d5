# MaskDINO with ResNet-50. Data, batch and steps of the authors are those of Mask2Former.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'

model = dict(
    type='itpn_mm.MaskDINO',
    data_preprocessor=dict(pad_size_divisor=64),  # maps of all strides cover the same
    panoptic_head=dict(
        _delete_=True,
        type='itpn_mm.MaskDINOHead',
        num_things_classes=80,
        num_stuff_classes=0,
        in_channels=[256, 512, 1024, 2048],
        num_queries=300,
        pixel_decoder=dict(num_levels=4, num_extra_levels=1, feedforward_channels=2048),
        box_init='mask2box',
        denoising=dict(num_queries=100, noise_scale=0.4),
    ),
    panoptic_fusion_head=dict(type='itpn_mm.MaskDINOFusionHead'),
    train_cfg=dict(
        _delete_=True, num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75
    ),
    test_cfg=dict(_delete_=True, panoptic_on=False, instance_on=True, max_per_image=100),
)
# mmdet's config still names the folder of panoptic annotations.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
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
