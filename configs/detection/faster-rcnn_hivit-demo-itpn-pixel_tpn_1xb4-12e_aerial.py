# A small Faster R-CNN that finds trees in aerial photographs: minutes on two cores. See
# tools/demo.sh.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/aerial.py',
    '../_base_/schedules/demo_adamw.py',
]

pretrained = 'work_dirs/demo/pretrain/epoch_24.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.HiViT',
        arch=dict(embed_dims=256, depths=(1, 1, 4), num_heads=4),
        img_size=128,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        _delete_=True,
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(64, 128, 256),
        out_channels=64,
        out_strides=(4, 8, 16, 32, 64),
        depth=1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Trees have 4 to 54 pixels, half of them 14 to 25.
        anchor_generator=dict(scales=[4]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
    ),
    # Far fewer candidates than on COCO: they take most of the time of so small a model.
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
