# Integral pre-training of Fast-iTPN-B and its pyramid by CLIP ViT-L/14: cosine, no auxiliary
# branch, no relative positions.
model = dict(
    type='itpn_mm.iTPNDistill',
    data_preprocessor=dict(
        type='mmpretrain.TwoNormDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        second_mean=[0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255],
        second_std=[0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255],
        to_rgb=True,
    ),
    backbone=dict(type='itpn_mm.FastiTPN', arch='base', img_size=224, drop_path_rate=0.1),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16),
        depth=1,
        bias=True,
    ),
    decoder=dict(type='itpn_mm.LevelSum', in_channels=256, embed_dims=512),
    head=dict(type='itpn_mm.CLIPDistillHead', in_channels=512, target_dims=768, loss='cosine'),
    teacher=dict(
        type='itpn_mm.CLIPTeacher', checkpoint='pretrained/clip_vit-large-p14.pt', img_size=196
    ),
)
