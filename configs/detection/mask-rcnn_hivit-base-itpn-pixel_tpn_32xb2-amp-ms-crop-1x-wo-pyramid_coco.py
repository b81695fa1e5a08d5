# Table VIII: the backbone is pre-trained, the pyramid starts at random.
_base_ = './mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco.py'

model = dict(neck=dict(init_cfg=None))
