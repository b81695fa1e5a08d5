_base_ = './upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(type='itpn_mm.FastiTPN', rel_pos_bias=None, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(depth=1, bias=True, init_cfg=dict(checkpoint=pretrained)),
)
