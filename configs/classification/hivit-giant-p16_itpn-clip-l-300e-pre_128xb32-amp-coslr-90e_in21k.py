# Nothing but its size is published of iTPN-g; widths and depths are inferred from it.
_base_ = [
    '../_base_/models/hivit_classifier.py',
    '../_base_/datasets/imagenet21k_inception_224.py',
    '../_base_/schedules/in21k_finetune_90e.py',
]

pretrained = 'work_dirs/itpn-clip-l_hivit-giant-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'
model = dict(
    backbone=dict(
        arch='giant',
        drop_path_rate=0.2,
        layer_scale_init_value=0.1,
        with_cp=True,
        init_cfg=dict(checkpoint=pretrained),
    ),
    neck=dict(in_channels=1408),
    head=dict(num_classes=21841, in_channels=1408),
)
train_dataloader = dict(batch_size=32)
