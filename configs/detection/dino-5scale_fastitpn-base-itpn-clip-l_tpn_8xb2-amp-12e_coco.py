_base_ = './dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco.py'

model = dict(
    num_feature_levels=5,
    neck=dict(out_strides=(4, 8, 16, 32, 64)),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
