_base_ = './itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k.py'

model = dict(
    backbone=dict(arch='large'),
    neck=dict(in_channels=(192, 384, 768)),
    decoder=dict(embed_dims=768),
    head=dict(in_channels=768),
)
