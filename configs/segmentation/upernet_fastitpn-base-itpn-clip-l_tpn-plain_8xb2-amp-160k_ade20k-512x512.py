# The pyramid alone, without the backbone's maps.
_base_ = './upernet_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-160k_ade20k-512x512.py'

model = dict(
    neck=dict(concat_inputs=False),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256),
)
