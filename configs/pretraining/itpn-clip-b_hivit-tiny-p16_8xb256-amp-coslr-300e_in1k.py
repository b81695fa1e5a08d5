_base_ = './itpn-clip-b_hivit-base-p16_8xb256-amp-coslr-300e_in1k.py'

model = dict(
    backbone=dict(arch='tiny'),
    neck=dict(in_channels=(96, 192, 384)),
    decoder=dict(embed_dims=384),
    head=dict(in_channels=384),
    aux_head=dict(in_channels=384, num_heads=6),
)
