_base_ = [
    '../_base_/models/hivit_classifier.py',
    '../_base_/datasets/imagenet_inception_224.py',
    '../_base_/schedules/itpn-clip_finetune_50e.py',
]

pretrained = 'work_dirs/itpn-clip-b_hivit-large-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.25,
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(in_channels=768),
    head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=16)
