"""Token migration: who leaves, and how they come back (the whole: test_acceleration)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.layers.migration import choose_leaving, restore_tokens, take_tokens

pytestmark = pytest.mark.checklist('migration')

SEEDS = st.integers(0, 999)


@st.composite
def choices(draw):
    """Windows of a length and how many of their tokens leave."""
    length = draw(st.integers(1, 40))
    num = draw(st.integers(0, min((length + 1) // 2, length - 1)))
    shape = draw(st.sampled_from([(), (3,), (2, 3)]))
    return shape, length, num


@settings(max_examples=250, deadline=None)
@given(choice=choices(), seed=SEEDS)
def test_the_most_similar_of_a_leave(choice, seed):
    (shape, length, num), dim = choice, 5
    torch.manual_seed(seed)
    keys = torch.randn(*shape, length, dim, dtype=torch.float64)
    stay, leave = choose_leaving(keys, num)
    assert stay.shape == (*shape, length - num) and leave.shape == (*shape, num)
    assert ((leave % 2) == 0).all()  # those of A
    parts = (
        x.reshape(torch.Size(shape).numel(), *x.shape[len(shape) :]) for x in (keys, stay, leave)
    )
    for window, s, left in zip(*parts, strict=True):
        assert s.tolist() == sorted(set(range(length)) - set(left.tolist()))
        assert left.tolist() == sorted(left.tolist())
        if num:
            a, b = window[0::2], window[1::2]
            cosine = (a @ b.t()) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1))
            order = sorted(range(len(a)), key=lambda i: cosine[i].max().item(), reverse=True)
            assert {2 * i for i in order[:num]} == set(left.tolist())


@settings(max_examples=60, deadline=None)
@given(choice=choices(), scale=st.floats(1e-3, 1e3), seed=SEEDS)
def test_windows_and_the_length_of_keys_do_not_matter(choice, scale, seed):
    (_, length, num), _ = choice, torch.manual_seed(seed)
    keys = torch.randn(4, length, 6, dtype=torch.float64)
    stay, leave = choose_leaving(keys, num)
    lengths = torch.rand(4, length, 1, dtype=torch.float64) + scale
    for i in range(4):
        alone = choose_leaving(keys[i : i + 1] * lengths[i], num)
        assert torch.equal(alone[0][0], stay[i]) and torch.equal(alone[1][0], leave[i])


def test_equal_tokens_leave_and_different_ones_stay():
    keys = torch.eye(6)
    keys[4] = keys[1]  # of A, as one of B
    keys[3] = keys[5]  # both of B
    assert choose_leaving(keys, 1)[1].tolist() == [4]


@pytest.mark.parametrize('length, num', [(4, 3), (5, 4), (1, 1), (4, -1), (2, 2)])
def test_no_more_than_half_can_leave(length, num):
    message = rf'`num` must be 0 to .* for windows of {length} tokens.*but got {num}'
    with pytest.raises(ValueError, match=message):
        choose_leaving(torch.randn(2, length, 3), num)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 4), parts=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=SEEDS
)
def test_what_left_in_parts_comes_back_in_its_places(batch, parts, seed):
    torch.manual_seed(seed)
    x = torch.randn(batch, sum(parts), 3)
    ids = torch.rand(batch, sum(parts)).argsort(1).split(parts, dim=1)
    values = [take_tokens(x, index) for index in ids]
    for value, index in zip(values, ids):
        assert torch.equal(value, torch.stack([one[i] for one, i in zip(x, index)]))
    assert torch.equal(restore_tokens(values, ids), x)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 20), seed=SEEDS)
def test_one_order_serves_all_images(batch, length, seed):
    torch.manual_seed(seed)
    x, index = torch.randn(batch, length, 3), torch.randperm(length).unsqueeze(0)
    assert torch.equal(take_tokens(x, index), x[:, index[0]])
    assert torch.equal(restore_tokens([x[:, index[0]]], [index]), x)


def test_gradients_go_where_the_tokens_went():
    x = torch.randn(2, 6, 3, requires_grad=True)
    ids = torch.stack([torch.randperm(6), torch.randperm(6)]).split([2, 4], dim=1)
    first, second = (take_tokens(x, index) for index in ids)
    restore_tokens([2 * first, 3 * second], ids).sum().backward()
    for image in range(2):
        assert (x.grad[image, ids[0][image]] == 2).all()
        assert (x.grad[image, ids[1][image]] == 3).all()
