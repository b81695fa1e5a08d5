# Integral pre-training of HiViT-B and its pyramid, pixel supervision with an EMA teacher (Equation
# 4).
model = dict(
    type='itpn_mm.iTPN',
    data_preprocessor=dict(
        type='mmpretrain.SelfSupDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(type='itpn_mm.HiViT', arch='base', img_size=224),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16),
        depth=2,
    ),
    masking=dict(type='itpn_mm.RandomMasking', ratio=0.75),
    decoder=dict(
        type='itpn_mm.MIMDecoder',
        in_channels=256,
        embed_dims=512,
        depth=8,
        num_heads=16,
        img_size=224,
    ),
    head=dict(type='itpn_mm.PixelReconstructionHead', embed_dims=512),
    mfm_head=dict(
        type='itpn_mm.MFMHead', stage_channels=(128, 256, 512), in_channels=512, loss_weight=0.3
    ),
    teacher=dict(type='itpn_mm.EMATeacher', momentum=0.996),
)
custom_hooks = [dict(type='itpn_mm.EMATeacherHook')]
