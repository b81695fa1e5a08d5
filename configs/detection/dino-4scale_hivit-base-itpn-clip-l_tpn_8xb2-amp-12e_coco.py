_base_ = './dino-4scale_fastitpn-base-itpn-clip-l_tpn_8xb2-amp-12e_coco.py'

pretrained = 'work_dirs/itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(
        type='itpn_mm.HiViT', layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)
    ),
    neck=dict(bias=False, init_cfg=dict(checkpoint=pretrained)),
)
