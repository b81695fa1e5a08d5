# MaskDINO on Fast-iTPN-B: the pyramid gives all levels, so that none is computed by the head.
_base_ = './maskdino_r50_8xb2-amp-lsj-50e_coco.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.FastiTPN',
        arch='base',
        img_size=224,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16, 32, 64),
        depth=1,
        bias=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    panoptic_head=dict(
        in_channels=[256, 256, 256, 256, 256], pixel_decoder=dict(num_extra_levels=0)
    ),
)
optim_wrapper = dict(
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        unit='attention',
        custom_keys=dict(label_embed=dict(decay_mult=0.0)),
    ),
)
