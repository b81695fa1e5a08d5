# Layer decay as the authors count: blocks of the stem and merges are layers too, and the rate is
# stated for the 13 steps of a ViT-B, so that it falls less from one to the next.
_base_ = './upernet_hivit-base-itpn-pixel_tpn_8xb2-amp-160k_ade20k-512x512.py'

optim_wrapper = dict(paramwise_cfg=dict(unit='layer', reference_depth=13))
