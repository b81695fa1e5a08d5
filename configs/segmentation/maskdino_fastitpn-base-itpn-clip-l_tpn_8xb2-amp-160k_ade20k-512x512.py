# MaskDINO on Fast-iTPN-B: the maps are those of the pre-trained pyramid.
_base_ = './maskdino_r50_8xb2-160k_ade20k-512x512.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.FastiTPN',
        arch='base',
        img_size=512,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16, 32),
        depth=1,
        bias=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        layer_decay_rate=0.9,
        unit='attention',
        custom_keys=dict(
            query_content=dict(decay_mult=0.0),
            query_boxes=dict(decay_mult=0.0),
            label_embed=dict(decay_mult=0.0),
        ),
    ),
)
