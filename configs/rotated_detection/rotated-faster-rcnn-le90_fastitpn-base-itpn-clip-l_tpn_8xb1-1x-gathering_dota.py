_base_ = './rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.TokenMigration',
        backbone=_base_.model.backbone,
        window_attention=True,
        gathering=True,
    )
)
