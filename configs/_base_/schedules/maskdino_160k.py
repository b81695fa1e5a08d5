# The schedule of MaskDINO on ADE20K: steps after 135k and 150k iterations, gradients clipped hard.
_base_ = './segmentation_160k.py'

param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=160000,
        milestones=[135000, 150000],
        gamma=0.1,
    )
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            query_content=dict(decay_mult=0.0),
            query_boxes=dict(decay_mult=0.0),
            label_embed=dict(decay_mult=0.0),
        ),
    ),
)
