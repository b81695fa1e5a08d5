# ADE20K as MaskDINO has it: a short side of 256 to 1024, and no limit to what a class may fill of a
# crop.
_base_ = './ade20k_512x512.py'

crop_size = (512, 512)
short_sides = [int(512 * 0.1 * i) for i in range(5, 21)]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(
        type='RandomChoiceResize',
        scales=short_sides,
        resize_type='ResizeShortestEdge',
        max_size=2048,
    ),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
