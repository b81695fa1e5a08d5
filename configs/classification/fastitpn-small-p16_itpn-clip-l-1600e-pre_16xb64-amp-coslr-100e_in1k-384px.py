_base_ = [
    '../_base_/models/fastitpn_classifier.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/fastitpn_finetune_100e.py',
]

pretrained = 'work_dirs/itpn-clip-l_fastitpn-small-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(arch='small', img_size=384, init_cfg=dict(checkpoint=pretrained)),
    neck=dict(in_channels=384),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9))
