_base_ = [
    '../_base_/models/hivit_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/itpn_finetune_100e.py',
]

pretrained = 'work_dirs/itpn-pixel_hivit-base-p16_8xb512-amp-coslr-400e_in1k/epoch_400.pth'
model = dict(
    backbone=dict(drop_path_rate=0.15, init_cfg=dict(checkpoint=pretrained)),
)
train_dataloader = dict(batch_size=32)
