_base_ = './mask-rcnn_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-ms-crop-1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.TokenMigration',
        backbone=_base_.model.backbone,
        ratio=0.1,
    )
)
