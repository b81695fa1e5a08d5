# ImageNet-1k for a student with a teacher: one crop, resized for either, and a mask of blocks for
# the student's patches. Data preprocessors take the views as a list.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs512_mae.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomResizedCropAndInterpolationWithTwoPic',
        size=224,
        second_size=224,
        interpolation='bicubic',
        second_interpolation='lanczos',
        scale=(0.08, 1.0),
    ),
    dict(
        type='BEiTMaskGenerator',
        input_size=14,
        num_masking_patches=75,
        max_num_patches=75,
        min_num_patches=16,
    ),
    dict(type='PackInputs', algorithm_keys=['mask']),
]
train_dataloader = dict(
    batch_size=256,
    dataset=dict(pipeline=train_pipeline),
    # As in the stock file, from which mmengine would also hand the function the key `_scope_`.
    collate_fn=dict(_delete_=True, type='default_collate'),
)
