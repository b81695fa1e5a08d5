_base_ = [
    '../_base_/models/hivit_classifier.py',
    '../_base_/datasets/imagenet_inception_224.py',
    '../_base_/schedules/itpn-clip_finetune_100e.py',
]

pretrained = 'work_dirs/itpn-clip-l_hivit-base-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(layer_scale_init_value=0.1, init_cfg=dict(checkpoint=pretrained)),
)
train_dataloader = dict(batch_size=32)
