# For the released weights of MaskDINO with ResNet-50: its authors normalise queries twice
# before the heads, take padding for a part of the image, and start from the largest boxes at the
# finest level.
_base_ = './maskdino_r50_8xb2-amp-lsj-50e_coco.py'

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(init_cfg=None),
    panoptic_head=dict(double_norm=True, mask_padding=False, proposal_sizes=(0.4, 0.2, 0.1, 0.05)),
)
