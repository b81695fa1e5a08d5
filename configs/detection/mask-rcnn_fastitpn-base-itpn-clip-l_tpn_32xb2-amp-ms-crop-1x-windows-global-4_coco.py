_base_ = './mask-rcnn_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-ms-crop-1x_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.TokenMigration',
        backbone=_base_.model.backbone,
        window_attention=True,
        global_layers=(5, 11, 17, 23),
    )
)
