_base_ = './mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco.py'

pretrained = 'checkpoints/itpn-pixel_hivit-large-p16_in1k.pth'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=(192, 384, 768), init_cfg=dict(checkpoint=pretrained)),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
