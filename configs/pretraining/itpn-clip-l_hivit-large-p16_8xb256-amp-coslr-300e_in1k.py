_base_ = './itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-300e_in1k.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=(192, 384, 768)),
    decoder=dict(embed_dims=768),
    head=dict(in_channels=768),
    aux_head=dict(in_channels=768, num_heads=12),
)
