"""CLIP-supervised pre-training, with its auxiliary branch, against the released class."""

import pytest
import torch

from tests.golden import (
    DTYPES,
    INDEX,
    assert_matches,
    build_backbone,
    build_neck,
    by_patch,
    cases,
    load,
    our_state,
    under,
)

pytest.importorskip('mmpretrain')

from itpn_mm.checkpoint import remap
from itpn_mm.pretraining import CLIPDistillHead, iTPNDistill

pytestmark = pytest.mark.checklist('parity')

KIND = 'clip_pretrain'
REL_POS = 'attn.rel_pos.table'


def build(name, state):
    """The model that a fixture describes, with all its weights, strictly loaded."""
    kwargs, norm_eps = INDEX[name]['kwargs'], INDEX[name]['norm_eps']
    dim, dims = kwargs['embed_dim'], dict(target_dims=kwargs['teacher_dim'])
    if not kwargs['rpe']:  # the reference has tables in the auxiliary branch that it does not read
        state = {key: value for key, value in state.items() if not key.endswith(REL_POS)}
    backbone = build_backbone(name, state)
    model = iTPNDistill(
        backbone=backbone,
        neck=build_neck(name, state, out_strides=(4, 8, 16)),
        decoder=dict(
            type='itpn_mm.LevelSum',
            in_channels=kwargs['fpn_dim'],
            embed_dims=dim,
            norm_eps=norm_eps,
        ),
        head=CLIPDistillHead(dim, **dims),
        aux_head=dict(
            type='itpn_mm.AuxiliaryHead',
            in_channels=dim,
            num_heads=kwargs['num_heads'],
            mlp_ratio=kwargs['mlp_ratio'],
            grid=backbone.grid if kwargs['rpe'] else None,
            layer_scale_init_value=kwargs['init_values'],
            norm_eps=norm_eps,
            **dims,
        ),
        mask_laterals=False,
    )
    model.load_state_dict(state, strict=True)
    return model.to(state['mask_token'].dtype).eval()


def read(tensors, case):
    return (tensors[f'in/{case}/{key}'] for key in ('image', 'bool_masked_pos', 'target'))


@pytest.mark.parametrize('name, case, dtype', cases(KIND))
def test_golden_distill(name, case, dtype):
    tensors = load(name, dtype)
    images, mask, target = read(tensors, case)
    model = build(name, our_state(tensors))
    with torch.no_grad():
        levels, tapped, tokens = model.encode(images, mask.bool())
        losses = model.loss_of_target(images, mask.bool(), target)
        found = dict(
            pred=model.head(model.decoder(levels), tokens),
            aux_pred=model.aux_head(tapped, tokens),
            loss_1=losses['loss_distill'],
            loss_2=losses['loss_aux'],
            loss=losses['loss_distill'] + losses['loss_aux'],
        )
        found['aux_in'], found['level_sum'] = tapped, model.decoder.sum_levels(levels)
    found |= {f'V{stride}': by_patch(x, 16 // stride) for stride, x in levels.items()}
    expected = under(tensors, f'out/{case}/')
    assert expected.keys() == {'pred', 'aux_pred', 'loss_1', 'loss_2', 'loss'}
    inner = under(tensors, f'mid/{case}/')
    expected |= {key: value for key, value in inner.items() if key in found}
    for key, value in expected.items():
        assert_matches(found[key], value, name, f'{case} {key}', dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_golden_distill_gradients(dtype):
    name, case = 'c1_clip_pretrain', '64x64'
    tensors = load(name, dtype)
    images, mask, target = read(tensors, case)
    model = build(name, our_state(tensors))
    sum(model.loss_of_target(images, mask.bool(), target).values()).backward()
    _, report = remap(under(tensors, 'sd/'))
    expected = under(tensors, f'grad/{case}/')
    assert len(expected) == len(INDEX[name]['cases'][case]['gradients']) > 0
    for key, value in expected.items():
        gradient = model.get_parameter(report.renamed[key]).grad
        assert_matches(gradient, value, name, f'gradient of {key}')
