# Mask R-CNN on HiViT-B and its pre-trained pyramid, with the authors' heads.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

pretrained = 'checkpoints/itpn-pixel_hivit-base-p16_in1k.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.HiViT',
        arch='base',
        img_size=224,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        _delete_=True,
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16, 32, 64),
        depth=2,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            reg_decoded_bbox=True,
            loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
        )
    ),
)
