# Backbone and pyramid start from DINO on Objects365.
_base_ = './maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-lsj-50e_coco.py'

pretrained = (
    'work_dirs/dino-5scale_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-12e_objects365v1/epoch_12.pth'
)
model = dict(
    backbone=dict(init_cfg=dict(checkpoint=pretrained)),
    neck=dict(init_cfg=dict(checkpoint=pretrained)),
)
