# No recipe was published for this size: it is that of the base model.
_base_ = [
    '../_base_/models/hivit_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/itpn_finetune_100e.py',
]

pretrained = 'work_dirs/itpn-pixel_hivit-small-p16_8xb512-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.15, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=384),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=32)
