_base_ = './itpn-pixel_hivit-base-p16_8xb512-amp-coslr-300e_in1k.py'

model = dict(
    backbone=dict(arch='tiny'),
    neck=dict(in_channels=(96, 192, 384)),
    mfm_head=dict(stage_channels=(96, 192, 384)),
)
