_base_ = './upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512.py'

pretrained = 'work_dirs/itpn-clip-b_hivit-base-p16_8xb256-amp-coslr-800e_in1k/epoch_800.pth'
model = dict(
    backbone=dict(
        layer_scale_init_value=0.1, drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)
    ),
    neck=dict(depth=1, init_cfg=dict(checkpoint=pretrained)),
)
