"""The printed config builds the model that a file holds."""

import pytest
import torch
from torch import nn

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import remap
from itpn_mm.checkpoint.model_config import config_text, task_of
from itpn_mm.registry import MODELS
from tests.golden import INDEX, under

from .models import (
    ARCH,
    KEYS,
    authors_state,
    backbone,
    fast_backbone,
    fast_pretraining,
    neck,
    read_table,
    state_of,
)

TABLES = sorted(path.stem for path in KEYS.glob('*.json'))


def read_config(text: str) -> dict:
    """What a person gets who pastes the text."""
    config = {}
    if text.startswith('model = '):
        exec(text, config)
        return dict(model=config['model'], load_from=config['load_from'])
    return eval(f'dict({text})')


def build(config: dict) -> nn.Module:
    """The model, or its parts, without memory."""
    with torch.device('meta'):
        if 'model' in config:
            return MODELS.build(config['model'])
        return nn.ModuleDict({name: MODELS.build(part) for name, part in config.items()})


def load_strictly(state: dict, released: bool = True) -> tuple[dict, nn.Module]:
    config = read_config(config_text(state, 'a.pth', released))
    model = build(config)
    model.load_state_dict({key: tensor.to('meta') for key, tensor in state.items()}, strict=True)
    return config, model


@pytest.mark.parametrize('name', TABLES)
def test_released_model_of_keys(name):
    """Strictly: nothing missing, nothing left over."""
    pytest.importorskip('mmpretrain')
    state = remap(read_table(name))[0]
    config, model = load_strictly(state)
    kind = name.split('_')[0]
    if kind in ('det', 'seg'):
        assert set(config) == {'backbone', 'neck'}
        assert model.backbone.patch_embed.norm.eps == model.neck.outputs.p4.norm2.eps == 1e-5
        assert config['neck'].get('concat_inputs', False) == (kind == 'seg')
        assert config['neck']['init_cfg'] == dict(type='Pretrained', checkpoint='a.pth')
        strides = (4, 8, 16, 32) if kind == 'seg' else (4, 8, 16, 32, 64)
        assert (model.neck.out_strides, model.neck.pool) == (
            strides,
            'max' if kind == 'seg' else 'avg',
        )
    else:
        assert config['load_from'] == 'a.pth'
        assert type(model).__name__ == (
            'ImageClassifier'
            if 'pretrain' not in name
            else 'iTPN'
            if 'pixel' in name
            else 'iTPNDistill'
        )
        assert model.backbone.patch_embed.proj.weight.shape[0] * 4 == model.backbone.embed_dims
    arch = next(a for a in ('tiny', 'small', 'base', 'large') if f'_{a}' in name)
    cls = FastiTPN if kind == 'fast' else HiViT
    assert config.get('model', config)['backbone']['arch'] == cls.arch_zoo[arch]
    assert type(model.backbone) is cls
    if 'finetune_' in name:
        assert model.backbone.grid == (int(name[-3:]) // 16,) * 2


@pytest.mark.parametrize(
    'name', [n for n, info in INDEX.items() if 'embed_dim' in info.get('kwargs', {})]
)
def test_fixture(name):
    """Small models with other heads, biases and options, at their size; rectangles do not tell."""
    pytest.importorskip('mmpretrain')
    if 'rect' in name or 'noabspos' in name:
        pytest.skip('a checkpoint does not tell this grid')
    _, model = load_strictly(remap(authors_state(name))[0])
    assert model.backbone.depths


def test_fast_pretraining():
    pytest.importorskip('mmpretrain')
    config, model = load_strictly(remap(fast_pretraining())[0])
    assert config['model']['head']['loss'] == 'cosine' and model.aux_head is None
    assert config['model']['neck']['bias'] and config['model']['neck']['depth'] == 1


@pytest.mark.parametrize('positions', ['masked', 'visible'])
def test_our_feature_modelling(positions):
    """What we train: with a teacher."""
    pytest.importorskip('mmpretrain')
    config = read_config(config_text(remap(authors_state())[0], 'a.pth'))['model']
    width = dict(masked=config['decoder']['embed_dims'], visible=16)[positions]
    mfm_head = dict(type='itpn_mm.MFMHead', positions=positions, stage_channels=(8, 16, 32))
    config |= dict(mfm_head=dict(mfm_head, in_channels=width))
    config |= dict(teacher=dict(type='itpn_mm.EMATeacher'))
    state = MODELS.build(config).state_dict()
    found, model = load_strictly(state, released=False)
    assert model.mfm_head.positions == positions
    assert found['model']['backbone'].get('norm_eps') is None


@pytest.mark.parametrize(
    'make, backbone_kwargs, neck_kwargs',
    [
        (backbone, {}, {}),
        (
            backbone,
            dict(img_size=96, rel_pos_bias='block', layer_scale_init_value=0.1, mlp_ratio=2.0),
            dict(depth=(1, 2), bias=True),
        ),
        (
            backbone,
            dict(use_abs_pos_emb=False, rel_pos_bias='decomposed', patch_norm=False),
            dict(depth=1),
        ),
        (backbone, {}, dict(out_strides=(8, 16))),
        (backbone, {}, dict(out_strides=(4,))),
        (backbone, {}, dict(out_strides=(16,))),
        (fast_backbone, dict(cls_token=True, rel_pos_bias='block'), dict(depth=1, bias=True)),
        (fast_backbone, dict(sub_norm=False, rel_pos_bias='decoupled'), {}),
        (fast_backbone, dict(swiglu=False, qkv_bias=False, layer_scale_init_value=None), {}),
    ],
)
def test_parts(make, backbone_kwargs, neck_kwargs):
    parts = dict(backbone=make(**backbone_kwargs), neck=neck(**neck_kwargs))
    config, model = load_strictly(state_of(**parts), released=False)
    for name in parts:
        assert config[name]['init_cfg'] == dict(type='Pretrained', checkpoint='a.pth')
    assert set(ARCH) == set(config['backbone']['arch'])
    assert model.neck.in_channels == (8, 16, 32)


def test_pyramid_alone():
    for out_strides, strides in (((4, 8, 16), (4, 8, 16)), ((8, 16), (8, 16)), ((16,), (16,))):
        state = state_of(neck=neck(out_strides=out_strides))
        _, model = load_strictly(state, released=False)
        assert model.neck.in_strides == strides


def test_nothing_of_ours():
    assert config_text({'conv1.weight': torch.zeros(1)}, 'a.pth') == ''


def test_task_of_heads():
    state = remap(authors_state('b2_pixel_cls'))[0]
    bare = {f'backbone.{key}': tensor for key, tensor in under(state, 'backbone.').items()}
    for head, task in (
        ('rpn_head.a', 'detection'),
        ('decode_head.a', 'segmentation'),
        ('head.fc.weight', 'classification'),
        ('x', 'parts'),
    ):
        assert task_of({**bare, head: torch.zeros(1)}) == task
