# A small MaskDINO that tells background, inside and border of nuclei apart: one stage, one query a
# class. See tools/demo.sh.
_base_ = [
    '../_base_/models/hivit-demo_tpn_segmentor.py',
    '../_base_/datasets/nuclei_semantic.py',
    '../_base_/schedules/demo_adamw_iterations.py',
]
custom_imports = dict(imports=['mmdet.models'], allow_failed_imports=False)

model = dict(
    decode_head=dict(
        type='itpn_mm.MaskDINODecodeHead',
        num_classes=3,
        in_channels=[64, 64, 64, 64],
        num_queries=20,
        feat_channels=64,
        out_channels=64,
        pixel_decoder=dict(num_levels=3, num_layers=3, feedforward_channels=128),
        transformer_decoder=dict(num_layers=3, feedforward_channels=128),
        denoising=dict(num_queries=20),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=4.0,
            class_weight=[1.0, 1.0, 1.0, 0.1],
        ),
        train_cfg=dict(num_points=1024),  # as many as a predicted mask has cells
    ),
)
