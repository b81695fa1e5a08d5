# The authors' schedule of CLIP-supervised pre-training at a batch of 2048: 5 epochs of warm-up,
# then a cosine to 1e-5.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
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
        T_max=295,
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05),
    # One rate for all layers. Relative position tables and the mask token are decayed, the position
    # embedding is not.
    constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0, custom_keys=dict(rel_pos=dict(decay_mult=1.0))),
)
auto_scale_lr = dict(base_batch_size=2048)
