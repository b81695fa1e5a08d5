# A small DINO that finds trees in aerial photographs: the pre-trained pyramid, from stride 4 up, is
# what the encoder reads. See tools/demo.sh.
_base_ = [
    '../_base_/datasets/aerial.py',
    '../_base_/schedules/demo_adamw.py',
]

pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
attention = dict(embed_dims=64, num_heads=4, dropout=0.0)
feed_forward = dict(embed_dims=64, feedforward_channels=128, ffn_drop=0.0)
model = dict(
    type='itpn_mm.DINO',
    num_queries=60,  # a tile shows at most 34 trees
    with_box_refine=True,
    as_two_stage=True,
    num_feature_levels=4,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
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
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feed_forward)),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=feed_forward),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=32, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type='DINOHead',
        embed_dims=64,
        num_classes=1,
        sync_cls_avg_factor=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=60),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=60),
)
