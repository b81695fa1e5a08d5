# A small MaskDINO that finds nuclei: two stages, boxes start where the masks of the first one are.
# See tools/demo.sh.
_base_ = [
    '../_base_/datasets/nuclei.py',
    '../_base_/schedules/demo_adamw.py',
]

pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
model = dict(
    type='itpn_mm.MaskDINO',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
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
    panoptic_head=dict(
        type='itpn_mm.MaskDINOHead',
        num_things_classes=1,
        num_stuff_classes=0,
        in_channels=[64, 64, 64, 64],
        num_queries=40,  # a tile shows at most 15 nuclei
        feat_channels=64,
        out_channels=64,
        pixel_decoder=dict(num_levels=3, num_layers=3, feedforward_channels=128),
        transformer_decoder=dict(num_layers=3, feedforward_channels=128),
        two_stage=True,
        box_init='mask2box',
        denoising=dict(num_queries=40),
    ),
    panoptic_fusion_head=dict(
        type='itpn_mm.MaskDINOFusionHead', num_things_classes=1, num_stuff_classes=0
    ),
    train_cfg=dict(num_points=2048),  # a mask has 32 x 32 cells
    test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=40),
)
