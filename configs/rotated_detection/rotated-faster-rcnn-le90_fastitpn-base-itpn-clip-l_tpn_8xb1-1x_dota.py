# Stock Rotated Faster R-CNN on Fast-iTPN-B and its pre-trained pyramid.
_base_ = 'mmrotate::rotated_faster_rcnn/rotated-faster-rcnn-le90_r50_fpn_1x_dota.py'

pretrained = 'work_dirs/itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k/epoch_1600.pth'
model = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.FastiTPN',
        arch='base',
        img_size=224,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.'),
    ),
    neck=dict(
        _delete_=True,
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(128, 256, 512),
        out_channels=256,
        out_strides=(4, 8, 16, 32, 64),
        depth=1,
        bias=True,
        init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='neck.'),
    ),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, unit='attention'),
)
param_scheduler = _base_.param_scheduler
param_scheduler[1].update(milestones=[9, 11])
# The rate is for 8 GPUs x 1 image; `--auto-scale-lr` adapts it to another batch.
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(
    checkpoint=dict(type='itpn_mm.AtomicCheckpointHook'),
    preflight=dict(type='itpn_mm.PreflightHook'),
    seed=dict(type='itpn_mm.SeedHook'),
    nonfinite=dict(type='itpn_mm.NonFiniteHook'),
)
