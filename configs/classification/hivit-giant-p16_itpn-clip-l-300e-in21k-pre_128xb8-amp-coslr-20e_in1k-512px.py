# Nothing but its size is published of iTPN-g; widths and depths are inferred from it.
_base_ = [
    '../_base_/models/hivit_classifier.py',
    '../_base_/datasets/imagenet_inception_512.py',
    '../_base_/schedules/in21k-pre_finetune_20e.py',
]

pretrained = (
    'work_dirs/hivit-giant-p16_itpn-clip-l-300e-pre_128xb32-amp-coslr-90e_in21k/epoch_90.pth'
)
model = dict(
    backbone=dict(
        arch='giant',
        img_size=512,
        drop_path_rate=0.25,
        layer_scale_init_value=0.1,
        with_cp=True,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(
        in_channels=1408, init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.')
    ),
    head=dict(in_channels=1408),
    train_cfg=None,
)
train_dataloader = dict(batch_size=8)
