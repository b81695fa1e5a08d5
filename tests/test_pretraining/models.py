"""A small iTPN whose widths all differ, so that no two can be taken for each other."""

import pytest
from mmengine.config import Config
from torch import nn

from itpn_mm.registry import MODELS

STAGES, PYRAMID, DECODER = (8, 16, 32), 12, 48


def itpn_cfg(positions: str = 'masked', **overrides) -> dict:
    """Config of the model; `overrides` replace values by dotted name, written with two underscores.

    `itpn_cfg(neck__depth=2)` sets `neck.depth`.
    """
    cfg = Config(
        dict(
            type='itpn_mm.iTPN',
            backbone=dict(
                type='itpn_mm.HiViT',
                arch=dict(embed_dims=STAGES[-1], depths=(1, 1, 2), num_heads=2),
                img_size=64,
            ),
            neck=dict(
                type='itpn_mm.TransformerPyramidNeck',
                in_channels=STAGES,
                out_channels=PYRAMID,
                out_strides=(4, 8, 16),
                depth=1,
            ),
            masking=dict(type='itpn_mm.RandomMasking', ratio=0.75),
            decoder=dict(
                type='itpn_mm.MIMDecoder',
                in_channels=PYRAMID,
                embed_dims=DECODER,
                depth=1,
                num_heads=3,
                img_size=64,
            ),
            head=dict(type='itpn_mm.PixelReconstructionHead', embed_dims=DECODER),
            mfm_head=dict(
                type='itpn_mm.MFMHead',
                positions=positions,
                stage_channels=STAGES,
                in_channels=DECODER if positions == 'masked' else PYRAMID,
            ),
            teacher=dict(type='itpn_mm.EMATeacher'),
        )
    )
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in overrides.items()})
    return cfg.to_dict()


def build_itpn(positions: str = 'masked', start: bool = True, **overrides) -> nn.Module:
    """The model; `start` makes the teacher equal to the backbone, as the hook does."""
    pytest.importorskip('mmpretrain')
    model = MODELS.build(itpn_cfg(positions, **overrides))
    if start and model.teacher is not None:
        model.teacher.update_parameters(model.backbone)
    return model
