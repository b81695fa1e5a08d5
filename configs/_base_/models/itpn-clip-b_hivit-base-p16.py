# Integral pre-training of HiViT-B and its pyramid by CLIP ViT-B/16, with the auxiliary branch of
# the released models. The student's pixels have the mean and deviation of Inception, the teacher's
# those of CLIP.
model = dict(
    type='itpn_mm.iTPNDistill',
    data_preprocessor=dict(
        type='mmpretrain.TwoNormDataPreprocessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        second_mean=[0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255],
        second_std=[0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255],
        to_rgb=True,
    ),
    backbone=dict(
        type='itpn_mm.HiViT',
        arch='base',
        img_size=224,
        rel_pos_bias='block',
        layer_scale_init_value=0.1,
        drop_path_rate=0.1,
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16),
        depth=1,
    ),
    decoder=dict(type='itpn_mm.LevelSum', in_channels=256, embed_dims=512),
    head=dict(type='itpn_mm.CLIPDistillHead', in_channels=512, target_dims=512, loss='smooth_l1'),
    aux_head=dict(
        type='itpn_mm.AuxiliaryHead',
        in_channels=512,
        num_heads=8,
        grid=(14, 14),
        layer_scale_init_value=0.1,
        target_dims=512,
        loss='smooth_l1',
    ),
    teacher=dict(
        type='itpn_mm.CLIPTeacher', checkpoint='pretrained/clip_vit-base-p16.pt', img_size=224
    ),
)
