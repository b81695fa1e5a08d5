# The stock pipelines with the mean and standard deviation of Inception, 0.5, as the authors'
# CLIP-supervised iTPN has them.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_pipeline = _base_.train_pipeline
# What the augmentations fill in has this mean too.
train_pipeline[3].hparams.update(pad_val=[128] * 3)
train_pipeline[4].update(fill_color=[127.5] * 3, fill_std=[127.5] * 3)

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
