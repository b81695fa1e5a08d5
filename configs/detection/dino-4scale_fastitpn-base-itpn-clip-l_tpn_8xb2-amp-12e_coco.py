# DINO on Fast-iTPN-B: the pre-trained pyramid is what the encoder reads, without a mapper between.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    type='itpn_mm.DINO',
    data_preprocessor=dict(pad_size_divisor=64),  # maps of every stride cover the whole image
    backbone=dict(
        _delete_=True,
        type='itpn_mm.FastiTPN',
        arch='base',
        img_size=224,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        _delete_=True,
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(8, 16, 32, 64),
        depth=1,
        bias=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, unit='attention'),
)
default_hooks = dict(
    checkpoint=dict(type='itpn_mm.AtomicCheckpointHook'),
    preflight=dict(type='itpn_mm.PreflightHook'),
    seed=dict(type='itpn_mm.SeedHook'),
    nonfinite=dict(type='itpn_mm.NonFiniteHook'),
)
auto_scale_lr = dict(enable=False)
