_base_ = './mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-3x_coco.py'

pretrained = 'work_dirs/itpn-clip-b_hivit-base-p16_8xb256-amp-coslr-800e_in1k/epoch_800.pth'
model = dict(
    backbone=dict(layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(depth=1, init_cfg=dict(checkpoint=pretrained)),
)
