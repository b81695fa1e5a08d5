# Mask R-CNN on Fast-iTPN-B and its pre-trained pyramid, with the same heads.
_base_ = './mask-rcnn_hivit-base_tpn.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(type='itpn_mm.FastiTPN', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(depth=1, bias=True, init_cfg=dict(checkpoint=pretrained)),
)
