# ImageNet-21k, 21841 classes, in the pipeline of ImageNet-1k. There is no validation set.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'

data_preprocessor = dict(num_classes=21841)
train_dataloader = dict(dataset=dict(type='ImageNet21k', data_root='data/imagenet21k'))
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None
