"""Position tables against the released code that makes and resizes them."""

import re

import pytest
import torch

from itpn_mm.layers import DecomposedRelativePosition, TokenGrid, resize_pos_embed, sincos_pos_embed
from itpn_mm.layers.position import resize_decoupled_table, resize_rel_pos_1d, resize_rel_pos_table
from tests.golden import DTYPES, INDEX, assert_matches, load, resample_as_masked

RUNTIME = 'i1_pos_embed_runtime'
AT_LOAD = 'i2_pos_embed_load_bicubic'
GEOMETRIC = 'i3_rel_pos_table_geometric'
JOINT = 'i4_rel_pos_table_bicubic'
DECOMPOSED = 'i5_decomposed_rel_pos'
SINCOS = 'i6_sincos_pos_embed'

pytestmark = [pytest.mark.parametrize('dtype', DTYPES), pytest.mark.checklist('parity')]


def rows(name):
    assert INDEX[name]['rows']
    return [pytest.param(row, id=row.get('name', row.get('tensor'))) for row in INDEX[name]['rows']]


@pytest.mark.parametrize('row', rows(RUNTIME))
def test_golden_resize_at_run_time(row, dtype):
    tensors = load(RUNTIME, dtype)
    table = tensors[row['input']]
    side = round(table.shape[1] ** 0.5)
    grid = tuple(row['out_grid'])
    if row['tensor'].endswith('_masked'):
        assert resize_pos_embed(table, (side, side), grid, 0.1) is table
        result = resample_as_masked(table, grid)
    else:
        result = resize_pos_embed(table, (side, side), grid, 0.1)
        assert (result is table) == row['identity']
    assert_matches(result, tensors[row['tensor']], RUNTIME, row['tensor'])


@pytest.mark.parametrize('row', rows(AT_LOAD))
def test_golden_resize_at_load(row, dtype):
    tensors, extra = load(AT_LOAD, dtype), row['extra_tokens']
    old, new = tensors[f'in/{row["name"]}'], tensors[f'out/{row["name"]}']
    src, dst = (round((t.shape[1] - extra) ** 0.5) for t in (old, new))
    result = resize_pos_embed(old[:, extra:], (src, src), (dst, dst))
    assert_matches(result, new[:, extra:], AT_LOAD, row['name'])


@pytest.mark.parametrize('row', rows(JOINT))
def test_golden_resize_joint_table(row, dtype):
    tensors = load(JOINT, dtype)
    src, dst = ((row[key],) * 2 for key in ('src_window', 'dst_window'))
    result = resize_rel_pos_table(tensors[f'in/{row["name"]}'], src, dst)
    assert_matches(result, tensors[f'out/{row["name"]}'], JOINT, row['name'])


@pytest.mark.parametrize('row', rows(GEOMETRIC))
def test_golden_resize_in_progression(row, dtype):
    tensors, extra = load(GEOMETRIC, dtype), row['extra_rows']
    src, dst = ((row[key],) * 2 for key in ('src_window', 'dst_window'))
    table = tensors[f'in/{row["name"]}']
    if row['name'].startswith('decoupled'):
        result = resize_decoupled_table(table, dst[0], extra)
    else:
        result = resize_rel_pos_table(table, src, dst, 'geometric', extra)
    assert (result is table) == (src == dst)
    assert torch.equal(result[-extra:], table[-extra:])
    assert_matches(result, tensors[f'out/{row["name"]}'], GEOMETRIC, row['name'])


@pytest.mark.parametrize('row', rows(DECOMPOSED))
def test_golden_decomposed_table(row, dtype):
    tensors, size = load(DECOMPOSED, dtype), row['size']
    table, expected = tensors[f'in/{row["name"]}'], tensors[f'out/{row["name"]}']
    resized = resize_rel_pos_1d(table, size)
    difference = torch.arange(size).unsqueeze(1) - torch.arange(size) + size - 1
    assert_matches(resized[difference], expected, DECOMPOSED, row['name'])

    # The module gives q . R_row + q . R_column: a unit vector as query reads one channel of R.
    dim = table.shape[1]
    module = DecomposedRelativePosition(row['table_window'], dim).to(dtype)
    with torch.no_grad():
        module.table_h.copy_(table)  # the other table stays zero
        for channel in range(dim):
            q = torch.eye(dim, dtype=dtype)[channel].expand(1, 1, size, dim)
            bias = module(q, TokenGrid(size, 1))  # a grid of one column
            assert_matches(bias[0, 0], expected[..., channel], DECOMPOSED, row['name'])


def test_golden_sincos(dtype):
    tensors = load(SINCOS, dtype)
    assert tensors
    for key, expected in tensors.items():
        dim, side, *step = map(int, re.findall(r'\d+', key))  # one has every 13th token only
        table = sincos_pos_embed((side, side), dim)[0, :: step[0] if step else 1].to(dtype)
        assert_matches(table, expected, SINCOS, key)
