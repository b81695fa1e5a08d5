_base_ = './maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-160k_ade20k-512x512.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-small-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=(96, 192, 384), init_cfg=dict(checkpoint=pretrained)),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85))
