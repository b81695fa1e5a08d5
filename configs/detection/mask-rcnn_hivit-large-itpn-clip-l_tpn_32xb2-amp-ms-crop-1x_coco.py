# The relative positions start anew: in pre-training they were tables of all pairs, for 14 x 14
# patches.
_base_ = './mask-rcnn_hivit-large-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco.py'

pretrained = 'work_dirs/itpn-clip-l_hivit-large-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(
        rel_pos_bias='decomposed',
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(depth=1, init_cfg=dict(checkpoint=pretrained)),
)
