_base_ = './itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-300e_in1k.py'

# The size is published, the widths are inferred from it.
model = dict(
    backbone=dict(arch='giant', drop_path_rate=0.2),
    neck=dict(in_channels=(352, 704, 1408)),
    decoder=dict(embed_dims=1408),
    head=dict(in_channels=1408),
    aux_head=dict(in_channels=1408, num_heads=22),
)
