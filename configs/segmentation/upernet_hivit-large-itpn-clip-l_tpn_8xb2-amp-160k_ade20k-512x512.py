_base_ = './upernet_hivit-large-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512.py'

pretrained = 'work_dirs/itpn-clip-l_hivit-large-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(depth=1, init_cfg=dict(checkpoint=pretrained)),
)
