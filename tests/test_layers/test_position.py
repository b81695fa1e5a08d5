import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.layers import (
    DecomposedRelativePosition,
    RelativePositionBias,
    TokenGrid,
    resize_pos_embed,
    sincos_pos_embed,
)
from itpn_mm.layers.position import resize_rel_pos_1d, resize_rel_pos_table

SIDES = st.integers(1, 24)


def test_sincos_encodes_columns_then_rows():
    table = sincos_pos_embed((3, 5), 8).view(3, 5, 8)
    assert torch.equal(table[0, :, :4], table[2, :, :4])  # columns: the same in every row
    assert torch.equal(table[:, 0, 4:], table[:, 4, 4:])
    for k in range(2):
        angle = 3 * 10000 ** (-k / 2)
        assert table[0, 3, k].item() == pytest.approx(math.sin(angle))
        assert table[0, 3, 2 + k].item() == pytest.approx(math.cos(angle))
    assert table[2, 0, 4].item() == pytest.approx(math.sin(2))


def test_sincos_refuses_a_width_that_does_not_divide():
    with pytest.raises(ValueError, match=r'`dim` .* must be a multiple of 4, but got 6'):
        sincos_pos_embed((2, 2), 6)


@settings(max_examples=40, deadline=None)
@given(src=st.tuples(SIDES, SIDES), dst=st.tuples(SIDES, SIDES), offset=st.sampled_from([0.0, 0.1]))
def test_resize_gives_the_wanted_grid(src, dst, offset):
    table = torch.ones(1, src[0] * src[1], 2)
    resized = resize_pos_embed(table, src, dst, offset)
    assert resized.shape == (1, dst[0] * dst[1], 2)
    torch.testing.assert_close(resized, torch.ones_like(resized))  # a constant stays one


def test_resize_keeps_height_before_width():
    rows = torch.arange(6.0).repeat_interleave(4).view(1, 24, 1)  # 6 x 4, the row number
    resized = resize_pos_embed(rows, (6, 4), (12, 2)).view(12, 2)
    assert torch.equal(resized[:, 0], resized[:, 1])
    assert (resized[:, 0].diff() > 0).all()


def test_resize_on_the_same_grid_is_the_same_tensor():
    table = torch.randn(1, 12, 4)
    assert resize_pos_embed(table, (3, 4), (3, 4), 0.1) is table
    assert resize_pos_embed(table, (3, 4), (4, 3), 0.1) is not table


def test_offset_moves_the_samples():
    table = torch.randn(1, 16, 4)
    with_offset, without = (resize_pos_embed(table, (4, 4), (6, 6), o) for o in (0.1, 0.0))
    assert (with_offset - without).abs().max() > 1e-2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_resize_restores_the_dtype_and_works_in_at_least_float32(dtype):
    table = torch.randn(1, 16, 4, dtype=dtype)
    resized = resize_pos_embed(table, (4, 4), (7, 5), 0.1)
    wide = table.double() if dtype == torch.float64 else table.float()
    assert resized.dtype == dtype
    assert torch.equal(resized, resize_pos_embed(wide, (4, 4), (7, 5), 0.1).to(dtype))


def test_resize_passes_gradients():
    table = torch.randn(1, 16, 4, requires_grad=True)
    resize_pos_embed(table, (4, 4), (6, 5), 0.1).sum().backward()
    assert (table.grad != 0).all()


def test_joint_table_is_an_image_of_differences():
    table = torch.randn(7 * 5, 3)  # window 4 x 3
    resized = resize_rel_pos_table(table, (4, 3), (3, 5))
    image = table.view(7, 5, 3).permute(2, 0, 1)[None]
    expected = F.interpolate(image, size=(5, 9), mode='bicubic')
    torch.testing.assert_close(resized, expected[0].permute(1, 2, 0).reshape(45, 3))
    assert resize_rel_pos_table(table, (4, 3), (4, 3)) is table


def test_one_dimensional_table():
    table = torch.randn(7, 3)
    assert resize_rel_pos_1d(table, 4) is table
    expected = F.interpolate(table.t()[None], size=11, mode='linear')[0].t()
    torch.testing.assert_close(resize_rel_pos_1d(table, 6), expected)


def test_token_grid_finds_rows_and_columns():
    keep = torch.tensor([[5, 0], [2, 4]])
    dense, kept = TokenGrid(2, 3), TokenGrid(2, 3, keep)
    assert dense.rows.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert dense.cols.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert kept.rows.tolist() == [[1, 0], [0, 1]]
    assert kept.cols.tolist() == [[2, 0], [2, 1]]


def plain_joint_bias(module, grid, ids):
    """One entry per query and key, by loops."""
    (h, w), table = grid, module.table.view(2 * grid[0] - 1, 2 * grid[1] - 1, -1)
    bias = torch.empty(table.shape[-1], len(ids), len(ids))
    for i, query in enumerate(ids):
        for j, key in enumerate(ids):
            bias[:, i, j] = table[query // w - key // w + h - 1, query % w - key % w + w - 1]
    return bias


def plain_decomposed_bias(module, grid, ids, q):
    (h, w) = grid
    bias = torch.empty(q.shape[0], len(ids), len(ids))
    for i, query in enumerate(ids):
        for j, key in enumerate(ids):
            by_row = q[:, i] @ module.table_h[query // w - key // w + h - 1]
            bias[:, i, j] = by_row + q[:, i] @ module.table_w[query % w - key % w + w - 1]
    return bias


@torch.no_grad()
@pytest.mark.parametrize('ids', [None, [[3, 0, 7], [5, 1, 2]]], ids=['dense', 'kept'])
def test_relative_position_bias_as_written_by_loops(ids):
    grid = (2, 4)
    module = RelativePositionBias(grid, 3)
    torch.nn.init.normal_(module.table)
    keep = None if ids is None else torch.tensor(ids)
    lists = ids or [list(range(8))]
    q = torch.randn(2, 3, len(lists[0]), 6)
    bias = module(q, TokenGrid(*grid, keep))
    assert bias.shape[0] == len(lists)
    for found, one in zip(bias, lists):
        torch.testing.assert_close(found, plain_joint_bias(module, grid, one))


@torch.no_grad()
@pytest.mark.parametrize('ids', [None, [[3, 0, 7], [5, 1, 2]]], ids=['dense', 'kept'])
def test_decomposed_relative_position_as_written_by_loops(ids):
    grid = (3, 3)
    module = DecomposedRelativePosition(3, 6)
    torch.nn.init.normal_(module.table_h)
    torch.nn.init.normal_(module.table_w)
    keep = None if ids is None else torch.tensor(ids)
    lists = ids or [list(range(9))] * 2
    q = torch.randn(2, 4, len(lists[0]), 6)
    bias = module(q, TokenGrid(*grid, keep))
    for found, one, queries in zip(bias, lists, q):
        expected = plain_decomposed_bias(module, grid, one, queries)
        torch.testing.assert_close(found, expected)


def test_rectangular_grids_use_rows_for_height():
    """On a 1 x 5 grid only differences of columns exist."""
    module = DecomposedRelativePosition(5, 4)
    torch.nn.init.normal_(module.table_h)
    q = torch.randn(1, 1, 5, 4)
    with torch.no_grad():
        bias = module(q, TokenGrid(1, 5))
    assert torch.equal(bias, bias[..., :1].expand_as(bias))  # one row: the same for every key
