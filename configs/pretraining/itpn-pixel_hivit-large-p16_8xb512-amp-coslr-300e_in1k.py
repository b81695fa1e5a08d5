_base_ = './itpn-pixel_hivit-base-p16_8xb512-amp-coslr-300e_in1k.py'

model = dict(
    backbone=dict(arch='large'),
    neck=dict(in_channels=(192, 384, 768)),
    mfm_head=dict(stage_channels=(192, 384, 768)),
)
