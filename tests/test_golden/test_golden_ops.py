"""Single layers against the released modules."""

import pytest
import torch
from torch import nn

from itpn_mm.layers import (
    Attention,
    AttentionBlock,
    DecomposedRelativePosition,
    MlpBlock,
    PatchEmbed,
    PatchMerge,
    PatchSplit,
    RelativePositionBias,
    TokenGrid,
)
from tests.golden import DTYPES, INDEX, assert_matches, by_patch, load, under

pytestmark = pytest.mark.checklist('parity')

RENAMES = {  # the reference's names of parameters -> ours; `reduction` only in the splitting
    'gamma_1': 'ls1.gamma',
    'gamma_2': 'ls2.gamma',
    'relative_position_bias_table': 'rel_pos.table',
    'rel_pos_h': 'rel_pos.table_h',
    'rel_pos_w': 'rel_pos.table_w',
}


def run_embed(norm):
    def run(fixture, module):
        return by_patch(module(fixture['in/0']), 4)

    return lambda: PatchEmbed(3, 8, 4, norm=norm), run


def cells(run):
    """Run on each patch as an image of its own: (B, N, s, s, C) <-> (B * N, s, s, C)."""

    def run_cells(fixture, module):
        x = fixture['in/0']
        return run(module, x.flatten(0, 1)).unflatten(0, x.shape[:2])

    return run_cells


def run_mask(fixture, module):
    return module(fixture['in/0'], bias=fixture['in/2'].bool()[:, None, None])


def run_rpe(fixture, module):
    tokens = TokenGrid(3, 3)
    assert torch.equal(tokens.relative_index.flatten(), fixture['in/1'])
    return module(fixture['in/0'], tokens)


def run_map(fixture, module):
    x = fixture['in/0']
    return module(x.flatten(1, 2), TokenGrid(*x.shape[1:3])).view(x.shape)


def call(module, x):
    return module(x)


OPS = {  # name -> how ours is made, how it is run on the reference's layout
    'patch_embed': run_embed(norm=True),
    'patch_embed_nonorm': run_embed(norm=False),
    'patch_merge': (lambda: PatchMerge(8), cells(call)),
    'patch_split': (lambda: PatchSplit(16, 8), cells(call)),
    'itpn_attention_mask': (lambda: Attention(24, 3), run_mask),
    'itpn_attention_rpe': (
        lambda: Attention(24, 3, rel_pos=RelativePositionBias((3, 3), 3)),
        run_rpe,
    ),
    'det_clip_attention': (
        lambda: Attention(24, 3, rel_pos=DecomposedRelativePosition(3, 8)),
        run_map,
    ),
    'clip_block_ls': (
        lambda: AttentionBlock(24, 3, 4.0, layer_scale_init_value=0.1),
        lambda fixture, module: module(fixture['in/0']),
    ),
    'mlp_only_block': (lambda: MlpBlock(8, 3.0), cells(call)),
}


def test_golden_ops_are_all_here():
    assert set(OPS) == set(INDEX['ops']['ops'])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('op', OPS)
def test_golden_op(op, dtype):
    fixture = under(load('ops', dtype), f'{op}/')
    make, run = OPS[op]
    module: nn.Module = make()
    state = under(fixture, 'sd/')
    renames = {**RENAMES, 'reduction': 'expand'} if op == 'patch_split' else RENAMES
    for old, new in renames.items():
        state = {k.replace(old, new): v for k, v in state.items()}
    module.load_state_dict(state, strict=True)
    with torch.no_grad():
        result = run(fixture, module.to(dtype).eval())
    assert_matches(result, fixture['out'], 'ops', op)
