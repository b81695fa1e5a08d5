"""Windows: how a grid is cut and ordered, and attention within (the whole: test_acceleration)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.layers.windows import TokenWindows, WindowGrid, attend
from tests.checklist import note_difference
from tests.slow_acceleration import cut

SIDES, SIZES = st.integers(1, 33), st.integers(2, 40)


def windows_of(height, width, size):
    """Row-major indices of the patches of each window, by its row and column."""
    return {
        (i, j): [y * width + x for y in rows for x in cols]
        for i, rows in enumerate(cut(height, size))
        for j, cols in enumerate(cut(width, size))
    }


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, size=SIZES)
def test_a_grid_is_cut_into_even_windows(height, width, size):
    grid, expected = WindowGrid(height, width, size), windows_of(height, width, size)
    assert (grid.num_rows, grid.num_cols) == (-(-height // size), -(-width // size))
    assert len(grid) == len(expected) == grid.num_rows * grid.num_cols
    places = [divmod(index, grid.num_cols) for index in grid.window_order().tolist()]
    assert sorted(places) == sorted(expected)
    shapes = [shape for num, *shape in grid.groups for _ in range(num)]
    order, start = grid.order()[0].tolist(), 0
    assert sorted(order) == list(range(height * width))  # every patch once, and no padding
    for place, (rows, cols) in zip(places, shapes, strict=True):
        assert max(rows, cols) <= size
        assert order[start : start + rows * cols] == expected[place]
        start += rows * cols
    assert all(max(side) - min(side) <= 1 for side in zip(*shapes))
    assert len(grid.groups) == len({tuple(shape) for shape in shapes}) <= 4  # one batch a shape
    assert grid.areas == sorted((rows * cols for _, rows, cols in grid.groups), reverse=True)
    assert grid.slots == max(rows for rows, _ in shapes) * max(cols for _, cols in shapes)


@settings(max_examples=100, deadline=None)
@given(height=SIDES, width=SIDES, size=SIZES)
def test_places_within_a_window(height, width, size):
    index = WindowGrid(height, width, size).local_index()
    for patches in windows_of(height, width, size).values():
        first_row, first_col = divmod(patches[0], width)
        for patch in patches:
            row, col = patch // width - first_row, patch % width - first_col
            assert index[patch] == row * size + col


def test_the_largest_windows_come_first():
    """5 x 7 in windows of 3: rows 2, 3 and columns 2, 2, 3."""
    grid = WindowGrid(5, 7, 3)
    assert grid.groups == [(1, 3, 3), (2, 3, 2), (1, 2, 3), (2, 2, 2)]
    assert grid.window_order().tolist() == [5, 3, 4, 2, 0, 1]
    assert grid.slots == 9
    assert grid.order()[0].tolist()[:11] == [18, 19, 20, 25, 26, 27, 32, 33, 34, 14, 15]


@pytest.mark.checklist('equivalences')
@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 9),
    keys=st.integers(1, 9),
    heads=st.integers(1, 3),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attend_is_softmax_attention(length, keys, heads, biased, seed):
    torch.manual_seed(seed)
    q = torch.randn(2, length, heads, 4)
    k, v = torch.randn(2, 2, keys, heads, 4)
    bias = torch.randn(1, heads, length, keys) if biased else None
    logits = torch.einsum('blhd,bmhd->bhlm', q, k) / 2
    weights = (logits + bias if biased else logits).softmax(-1)
    expected = torch.einsum('bhlm,bmhd->blhd', weights, v)
    found = attend(q, k, v, bias)
    note_difference('fused attention', [found], [expected], '<= 1e-5')
    torch.testing.assert_close(found, expected)


@st.composite
def layouts(draw):
    groups = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3))
    num_windows = sum(num for num, _ in groups)
    gathering = draw(st.sampled_from([0, num_windows]))
    return TokenWindows(tuple(groups), num_prefix=draw(st.integers(0, 1)), num_gathering=gathering)


@settings(max_examples=100, deadline=None)
@given(layout=layouts(), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_who_attends_to_whom(layout, batch, seed):
    """As attention over all tokens with a mask."""
    torch.manual_seed(seed)
    gathering, prefix = layout.num_gathering, layout.num_prefix
    window = [w for num, length in layout.groups for w in range(num) for _ in range(length)]
    group = [g for g, (num, length) in enumerate(layout.groups) for _ in range(num * length)]
    owners = list(dict.fromkeys(zip(group, window)))
    names = [('gather', owner) for owner in owners[:gathering]] + [('cls', None)] * prefix
    names += [('patch', owner) for owner in zip(group, window)]

    def sees(query, key):
        if key[0] == 'gather':
            return False
        return 'cls' in (query[0], key[0]) or query[1] == key[1]

    allowed = torch.tensor([[sees(query, key) for key in names] for query in names])
    q, k, v = torch.randn(3, batch, len(names), 2, 4)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    expected = attend(q, k, v, mask).flatten(2)
    torch.testing.assert_close(layout.attend(q, k, v, None), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('prefix', [0, 1])
def test_gathering_tokens_are_attended_to_only_with_a_scale(prefix):
    layout = TokenWindows(((2, 3),), num_prefix=prefix, num_gathering=2)
    q, k, v = torch.randn(3, 1, 8 + prefix, 2, 4)
    scaled = TokenWindows(((2, 3),), prefix, 2, scale=torch.nn.Identity())
    cross = attend(q, k[:, :2], v[:, :2]).flatten(2)
    difference = scaled.attend(q, k, v, None) - layout.attend(q, k, v, None)
    torch.testing.assert_close(difference, cross)
