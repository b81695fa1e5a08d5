# Classifier on a HiViT that iTPN pre-trained, as the authors fine-tune it: a table of relative
# positions for each block (zero at the start if the pre-training had none), mean over the
# positions, norm.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='itpn_mm.HiViT',
        arch='base',
        img_size=224,
        out_indices=(2,),
        rel_pos_bias='block',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=None, prefix='backbone.'),
    ),
    neck=dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=512),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=512,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
