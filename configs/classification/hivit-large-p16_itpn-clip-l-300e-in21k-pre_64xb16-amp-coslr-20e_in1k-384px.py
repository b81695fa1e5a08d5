_base_ = [
    '../_base_/models/hivit_classifier.py',
    '../_base_/datasets/imagenet_inception_384.py',
    '../_base_/schedules/in21k-pre_finetune_20e.py',
]

pretrained = (
    'work_dirs/hivit-large-p16_itpn-clip-l-300e-pre_64xb64-amp-coslr-90e_in21k/epoch_90.pth'
)
model = dict(
    backbone=dict(
        arch='large',
        img_size=384,
        drop_path_rate=0.25,
        layer_scale_init_value=0.1,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=768, init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.')
    ),
    head=dict(in_channels=768),
    train_cfg=None,
)
train_dataloader = dict(batch_size=16)
