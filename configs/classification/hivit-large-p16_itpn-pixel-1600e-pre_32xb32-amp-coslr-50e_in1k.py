_base_ = [
    '../_base_/models/hivit_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/itpn_finetune_50e.py',
]

pretrained = 'work_dirs/itpn-pixel_hivit-large-p16_8xb512-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=768),
    head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=32)
