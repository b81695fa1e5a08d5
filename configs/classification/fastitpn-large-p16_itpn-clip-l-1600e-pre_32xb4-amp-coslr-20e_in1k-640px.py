_base_ = [
    '../_base_/models/fastitpn_classifier.py',
    '../_base_/datasets/imagenet_640.py',
    '../_base_/schedules/fastitpn_finetune_20e.py',
]

pretrained = 'work_dirs/itpn-clip-l_fastitpn-large-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(
        arch='large', img_size=640, drop_path_rate=0.2, init_cfg=dict(checkpoint=pretrained)
    ),
    neck=dict(in_channels=768),
    head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=4)
# Four batches of 32 x 4 a step, and a step of the moving average for each of them.
optim_wrapper = dict(
    accumulative_counts=4, optimizer=dict(lr=5e-5), paramwise_cfg=dict(layer_decay_rate=0.95)
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(eta_min_ratio=1e-6 / 5e-5)
custom_hooks = _base_.custom_hooks
custom_hooks[0].update(interval=4)
auto_scale_lr = dict(base_batch_size=128)
