# The authors' fine-tuning of iTPN with pixel supervision at a batch of 1024: 5 epochs of warm-up,
# then a cosine to each layer's share of 5e-6.
_base_ = '../classification_runtime.py'

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)
val_cfg = dict()
test_cfg = dict()
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        by_epoch=True,
        begin=5,
        end=100,
        eta_min_ratio=5e-6 / 1.6e-3,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1.6e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    # The rate is stated for the 13 steps of a ViT-B, whatever the depth.
    paramwise_cfg=dict(layer_decay_rate=0.6, unit='block', reference_depth=13),
)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=3))
randomness = dict(seed=0, diff_rank_seed=True)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
