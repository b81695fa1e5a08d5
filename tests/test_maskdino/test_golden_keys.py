"""The configs for released weights take what their key tables name, and say what those need."""

import functools
import json
from unittest import mock

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from itpn_mm.checkpoint.maskdino import from_maskdino

from ..test_checkpoint.test_maskdino import read_table, resnet50, swin
from ..test_configs import MASKDINO, read
from .golden import DATA

pytestmark = pytest.mark.checklist('parity')

CONFIGS = dict(
    ade20k_semantic_r50='maskdino_r50-released_8xb2-160k_ade20k-512x512',
    coco_instance_r50='maskdino_r50-released_8xb2-amp-lsj-50e_coco',
    coco_panoptic_r50='maskdino_r50-released_8xb2-amp-lsj-50e_coco-panoptic',
    coco_instance_swinl_5lvl='maskdino_swin-l-released_8xb2-amp-lsj-50e_coco',
)


def test_golden_key_tables_have_configs():
    assert {path.stem for path in (DATA / 'keys').glob('*.json')} == set(CONFIGS)
    assert {name for name in MASKDINO if '-released_' in name} == set(CONFIGS.values())


@functools.cache
def released(table: str) -> dict[str, torch.Tensor]:
    """A file with the names and shapes of a released one, without memory."""
    with torch.device('meta'):
        large = (192, (2, 2, 18, 2), (6, 12, 24, 48), 12)
        backbone = swin(*large) if 'swinl' in table else resnet50()
    return read_table(table) | backbone


@pytest.mark.parametrize('table', CONFIGS)
def test_golden_keys_load_strictly(table):
    cfg = read(CONFIGS[table])
    with (
        torch.device('meta'),
        # mmdet's Swin Transformer reads numbers off it
        mock.patch('torch.linspace', functools.partial(torch.linspace, device='cpu')),
        DefaultScope.overwrite_default_scope(cfg.default_scope),
    ):
        model = MODELS.build(cfg.model)
    state, report = from_maskdino(released(table))
    assert not report.unexplained
    model.load_state_dict(state, strict=True, assign=True)

    head = 'decode_head' if cfg.default_scope == 'mmseg' else 'panoptic_head'
    trained = read(CONFIGS[table].replace('-released_', '_')).model[head]
    own = {key: value for key, value in cfg.model[head].items() if trained.get(key) != value}
    assert own == report.arguments
    assert cfg.model.backbone.init_cfg is None  # nothing to fetch


@pytest.mark.parametrize('table', CONFIGS)
def test_golden_kwargs_are_those_of_the_config(table):
    """What shapes do not tell: classes, queries, boxes at the start, denoising, losses."""
    cfg = read(CONFIGS[table])
    table = json.loads((DATA / 'keys' / f'{table}.json').read_text())
    theirs, pixels = table['predictor'], table['pixel_decoder']
    head = cfg.model.get('panoptic_head') or cfg.model.decode_head
    if 'panoptic_head' in cfg.model:
        assert head.num_things_classes + head.num_stuff_classes == theirs['num_classes']
        assert theirs['two_stage']
    else:
        assert head.num_classes == theirs['num_classes'] and not theirs['two_stage']
    assert head.num_queries == theirs['queries']
    assert head.get('box_init', 'no') == theirs['init']
    assert list(head.in_channels) == pixels['in_ch']
    assert head.pixel_decoder.num_levels == pixels['levels'] == theirs['levels']
    encoded = pixels['levels'] - head.pixel_decoder.get('num_extra_levels', 0)
    assert encoded == len(pixels['in_feats_enc'])
    assert head.pixel_decoder.feedforward_channels == pixels['ffn']
    noise = dict(num_queries=theirs['dn_num'], noise_scale=theirs['noise_scale'])
    assert head.denoising == noise and theirs['dn'] == 'seg'
    assert ('loss_cls' in head) == theirs.get('ce', False)  # else it is the focal one
