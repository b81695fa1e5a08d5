# Backbone and pyramid of the demo in mmseg's segmentor; a config adds the decode head.
pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(128, 128),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='itpn_mm.HiViT',
        arch=dict(embed_dims=256, depths=(1, 1, 4), num_heads=4),
        img_size=128,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(64, 128, 256),
        out_channels=64,
        out_strides=(4, 8, 16, 32),
        depth=1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
