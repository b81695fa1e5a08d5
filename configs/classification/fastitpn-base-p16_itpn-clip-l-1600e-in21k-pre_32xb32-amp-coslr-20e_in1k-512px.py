_base_ = [
    '../_base_/models/fastitpn_classifier.py',
    '../_base_/datasets/imagenet_512.py',
    '../_base_/schedules/fastitpn_finetune_20e.py',
]

pretrained = (
    'work_dirs/fastitpn-base-p16_itpn-clip-l-1600e-pre_32xb128-amp-coslr-90e_in21k/epoch_90.pth'
)
model = dict(
    backbone=dict(img_size=512, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.')),
)
train_dataloader = dict(batch_size=32)
