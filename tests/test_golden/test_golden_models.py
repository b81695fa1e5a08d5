"""HiViT and its pyramid against the released classifiers, detectors and segmentors."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden import (
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

pytestmark = pytest.mark.checklist('parity')

CLASSIFICATION = ('pixel_cls', 'clip_cls')
DENSE = ('det_pixel', 'det_clip', 'seg')


@pytest.mark.parametrize('name, case, dtype', cases(*CLASSIFICATION))
def test_golden_classifier(name, case, dtype):
    tensors = load(name, dtype)
    state = our_state(tensors)
    backbone = build_backbone(name, state)
    assert not under(state, 'neck.').keys() - {'norm.weight', 'norm.bias'}
    with torch.no_grad():
        x = backbone(tensors[f'in/{case}/image'])[-1].mean((2, 3))
        norm = under(state, 'neck.norm.')
        x = F.layer_norm(x, x.shape[1:], norm['weight'], norm['bias'], INDEX[name]['norm_eps'])
        logits = F.linear(x, state['head.fc.weight'], state['head.fc.bias'])
    assert_matches(logits, tensors[f'out/{case}/logits'], name, case)


@pytest.mark.parametrize('name, case, dtype', cases(*DENSE))
def test_golden_pyramid(name, case, dtype):
    tensors, info = load(name, dtype), INDEX[name]['cases'][case]
    state = our_state(tensors)
    assert {k.split('.')[0] for k in state} == {'backbone', 'neck'}  # nothing is left over
    backbone, neck = build_backbone(name, state), build_neck(name, state, **info['overrides'])
    with torch.no_grad():
        outputs = neck(backbone(tensors[f'in/{case}/image']))
    assert len(outputs) == len(info['outputs'])
    for i, output in enumerate(outputs):
        assert_matches(output, tensors[f'out/{case}/out{i}'], name, f'{case} output {i}')


def has_intermediates(parameters):
    name, case, _ = parameters.values
    return bool(INDEX[name]['cases'][case]['intermediates'])


@pytest.mark.parametrize(
    'name, case, dtype', filter(has_intermediates, cases(*CLASSIFICATION, *DENSE))
)
def test_golden_intermediates(name, case, dtype):
    """The sequence before and after stage 3, and the levels: they tell where an error starts."""
    tensors = load(name, dtype)
    state = our_state(tensors)
    backbone = build_backbone(name, state)
    found = {}
    backbone.stages[2][0].register_forward_pre_hook(lambda _, args: found.update(stage3_in=args[0]))
    with torch.no_grad():
        maps = backbone.forward_stages(tensors[f'in/{case}/image'])
        found['U3'] = maps[2].flatten(1, 2)
        found['U1'], found['U2'] = by_patch(maps[0], 4), by_patch(maps[1], 2)
        if f'mid/{case}/V4' in tensors:
            levels = build_neck(name, state).forward_levels(maps)
            found.update({f'V{stride}': by_patch(x, 16 // stride) for stride, x in levels.items()})
    expected = under(tensors, f'mid/{case}/')
    assert {'stage3_in', 'U3'} <= expected.keys()
    for key, value in expected.items():
        if value.ndim == 4:  # the CLIP detector keeps the tokens of stage 3 as a map
            value = value.flatten(1, 2)
        assert_matches(found[key], value, name, f'{case} {key}')
