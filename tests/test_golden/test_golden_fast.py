"""Fast-iTPN against the released classifier, in every option that works there."""

import pytest
import torch
import torch.nn.functional as F

from itpn_mm.necks import GlobalAveragePoolNorm
from tests.golden import (
    INDEX,
    assert_matches,
    build_fast_backbone,
    cases,
    load,
    names,
    our_state,
    under,
)

pytestmark = pytest.mark.checklist('parity')

KIND = 'fast_cls'


def test_all_fixtures_are_here():
    assert [name[:3] for name in names(KIND)] == [f'g{i:02}' for i in range(1, 16)]


def run(name, case, dtype):
    """The maps, the whole sequence after stage 3 (class token first), and more by name."""
    tensors = load(name, dtype)
    state = our_state(tensors)
    backbone, found = build_fast_backbone(name, state), {}
    first, last = backbone.stages[2][0], backbone.stages[2][-1]
    first.register_forward_pre_hook(lambda _, args: found.update(stage3_in=args[0], bias=args[2]))
    last.register_forward_hook(lambda _, args, out: found.update(U3=out))
    with torch.no_grad():
        maps = backbone(tensors[f'in/{case}/image'])
    return tensors, state, backbone, maps, found


@pytest.mark.parametrize('name, case, dtype', cases(KIND))
def test_golden_fast(name, case, dtype):
    tensors, state, backbone, maps, found = run(name, case, dtype)
    found.update(U1=maps[0], U2=maps[1])
    if backbone.rel_pos is not None:
        found['rel_pos_bias'] = found['bias'][0]

    dim, eps = backbone.embed_dims, INDEX[name]['norm_eps']
    mean_pooling = INDEX[name]['kwargs']['use_mean_pooling']
    norm = state['neck.norm.weight' if mean_pooling else 'neck.pre_norm.weight']
    with torch.no_grad():
        if backbone.cls_token is not None and not mean_pooling:
            # This head takes the mean over the class token too.
            x = F.layer_norm(found['U3'], (dim,), norm, state['neck.pre_norm.bias'], eps).mean(1)
        else:
            neck = GlobalAveragePoolNorm(dim, gap_before_norm=mean_pooling, norm_eps=eps)
            neck.load_state_dict(under(state, 'neck.'), strict=True)
            (x,) = neck.to(dtype)(maps)
        found['feature'] = x
        logits = F.linear(x, state['head.fc.weight'], state['head.fc.bias'])
    assert_matches(logits, tensors[f'out/{case}/logits'], name, case)
    expected = {k: v for k, v in under(tensors, f'mid/{case}/').items() if k in found}
    assert {'stage3_in', 'U1', 'U2', 'U3', 'feature'} <= expected.keys()
    assert ('rel_pos_bias' in expected) == (backbone.rel_pos is not None)
    for key, value in expected.items():
        assert_matches(found[key], value, name, f'{case} {key}')
