_base_ = './maskdino_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-160k_ade20k-512x512.py'

pretrained = 'checkpoints/itpn-pixel_hivit-large-p16_in1k.pth'
model = dict(
    backbone=dict(
        type='itpn_mm.HiViT',
        arch='large',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=(192, 384, 768), depth=2, bias=False, init_cfg=dict(checkpoint=pretrained)
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
