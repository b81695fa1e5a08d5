_base_ = './itpn-pixel_hivit-large-p16_8xb512-amp-coslr-300e_in1k.py'

train_cfg = dict(max_epochs=400)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(
        type='CosineAnnealingLR',
        T_max=360,
        by_epoch=True,
        begin=40,
        end=400,
        convert_to_iter_based=True,
    ),
]
