_base_ = [
    '../_base_/models/fastitpn_classifier.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    '../_base_/schedules/fastitpn_finetune_20e.py',
]

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(init_cfg=dict(checkpoint=pretrained)),
)
train_dataloader = dict(batch_size=32)
