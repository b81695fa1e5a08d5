_base_ = [
    '../_base_/models/fastitpn_classifier.py',
    '../_base_/datasets/imagenet21k_224.py',
    '../_base_/schedules/in21k_finetune_90e.py',
]

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(init_cfg=dict(checkpoint=pretrained)),
    head=dict(num_classes=21841),
)
train_dataloader = dict(batch_size=128)
# Stated for the steps of a ViT-B here; merges count, as in the authors' Fast-iTPN.
optim_wrapper = dict(paramwise_cfg=dict(unit='layer', reference_depth=13))
