# For the released weights of MaskDINO with ResNet-50: its authors normalise queries twice before
# the heads, and take padding for a part of the image.
_base_ = './maskdino_r50_8xb2-160k_ade20k-512x512.py'

model = dict(
    backbone=dict(init_cfg=None),
    decode_head=dict(double_norm=True, mask_padding=False),
)
