_base_ = './itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k.py'

model = dict(
    backbone=dict(arch='small'),
    neck=dict(in_channels=(96, 192, 384)),
    decoder=dict(embed_dims=384),
    head=dict(in_channels=384),
)
