"""DINO: the position encoding of queries, and released weights."""

import copy
import math

import pytest
import torch
from torch import Tensor

pytest.importorskip('mmdet')

from mmdet.models.layers.transformer.utils import coordinate_to_encoding
from mmengine.config import Config

from itpn_mm.detection.dino import QueryPositionHead
from itpn_mm.registry import MODELS


def authors_encoding(boxes: Tensor, width: int) -> Tensor:
    """Encoding of boxes (cx, cy, w, h) in [0, 1], (..., 2 width), written as the formula reads."""
    per_coordinate = width // 2
    parts = []
    for index in (1, 0, 2, 3):
        angle = boxes[..., index] * 2 * math.pi
        for i in range(per_coordinate // 2):
            turn = angle / 10000 ** (2 * i / per_coordinate)
            parts += [turn.sin(), turn.cos()]
    return torch.stack(parts, dim=-1)


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('width', [32, 64, 256])
@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_encoding_is_that_of_the_authors(width, stack):
    """From C features of a coordinate (onedl) and from 128 (open-mmlab), whatever C is."""
    torch.manual_seed(0)
    head, boxes = QueryPositionHead(width), torch.rand(2, 5, 4)
    encoding = coordinate_to_encoding(boxes, num_feats={'onedl': width, 'openmmlab': 128}[stack])
    first = head.layers[0]
    expected = head.layers[1](first(authors_encoding(boxes, width)).relu())
    assert first.in_features == 2 * width
    assert torch.allclose(head(encoding), expected, atol=1e-5)


def test_width_that_mmdet_cannot_encode_is_named():
    encoding = coordinate_to_encoding(torch.rand(1, 3, 4), num_feats=128)
    for width in (96, 512):
        with pytest.raises(ValueError, match=f'`embed_dims` is {width}, which needs'):
            QueryPositionHead(width)(encoding)


@pytest.fixture(scope='module')
def config() -> Config:
    text = "_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'"
    return Config.fromstring(text, '.py').model


@pytest.mark.checklist('parity')
def test_names_and_shapes_of_released_weights(config):
    """Those of mmdet's own released file, `dino-4scale_r50_8xb2-12e_coco`."""
    config.backbone.init_cfg = None
    with torch.device('meta'):  # shapes alone
        ours, stock = (
            MODELS.build({**copy.deepcopy(config), 'type': kind}).state_dict()
            for kind in ('itpn_mm.DINO', 'mmdet.DINO')
        )
    shapes = {key: tuple(value.shape) for key, value in stock.items()}
    shapes['decoder.ref_point_head.layers.0.weight'] = (256, 512)
    assert {key: tuple(value.shape) for key, value in ours.items()} == shapes
