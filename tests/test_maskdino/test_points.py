"""Masks at points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import point_sample

from itpn_mm.maskdino.points import place, sample_masks, sample_together, uncertain_points

coordinates = st.one_of(
    st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 1.0, 0.125, 0.5, 0.875, -0.125, 1.125])
)
points_of_masks = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=3)


@given(
    st.integers(1, 5), st.integers(1, 5), st.lists(points_of_masks, max_size=4), st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_sample_masks(height, width, points, seed):
    """As from masks in floating point, inside, at the border and outside."""
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5
    points = torch.tensor(points).view(-1, 3, 2)
    owners = torch.arange(len(points)).flip(0) % 3
    found = sample_masks(masks, owners, points)
    assert found.shape == points.shape[:2]
    if len(points):
        wanted = point_sample(masks[owners, None].float(), points)[:, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


@given(st.integers(1, 5), st.integers(1, 5), points_of_masks, st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_sample_together(height, width, points, seed):
    """As a grid sample has it."""
    maps = torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed))
    points = torch.tensor(points)
    found = sample_together(maps, points)
    torch.testing.assert_close(found, point_sample(maps[None], points[None])[0], rtol=0, atol=4e-6)


def test_points_far_outside_are_nothing():
    masks = torch.ones(1, 3, 4, dtype=torch.bool)
    points = torch.tensor([[[-5.0, 0.5], [0.5, 9.0], [1e6, -1e6], [0.5, 0.5]]])
    assert sample_masks(masks, torch.tensor([0]), points).tolist() == [[0, 0, 0, 1]]
    assert sample_together(masks.float(), points[0]).tolist() == [[0, 0, 0, 1]]


def test_uncertain_points_are_uncertain():
    """Masks whose logits grow with the distance from a column."""
    columns = torch.tensor([0.4, 0.6])
    x = (torch.arange(32.0) + 0.5) / 32
    # steep, because values fall to their half at the border
    logits = (12 * (x - columns[:, None, None]).abs()).exp().expand(2, 32, 32)
    points = uncertain_points(logits, 200, 3.0, 0.75)
    assert points.shape == (2, 200, 2)
    assert (points >= 0).all() and (points <= 1).all()
    distance = (points[..., 0] - columns[:, None]).abs()
    chosen, others = distance[:, :150], distance[:, 150:]
    # a quarter of all candidates lies within an eighth of the width
    assert chosen.max() < 0.21
    assert others.max() > 0.5
    assert points[:, 150:].mean().item() == pytest.approx(0.5, abs=0.06)


def test_all_points_may_be_random():
    points = uncertain_points(torch.zeros(1, 4, 4), 50, 1.0, 0.0)
    assert points.shape == (1, 50, 2)
    assert points.amax() > 0.9


def test_points_of_nothing():
    assert uncertain_points(torch.zeros(0, 4, 4), 8).shape == (0, 8, 2)
    nothing = sample_masks(torch.zeros(0, 4, 4).bool(), torch.zeros(0).long(), torch.zeros(0, 8, 2))
    assert nothing.shape == (0, 8)


def test_uncertain_points_leave_padding_out():
    """The padding of the map is uncertain, and not looked at."""
    logits = torch.zeros(1, 16, 16)
    logits[..., :8, :12] = torch.arange(12.0) + 1
    ratios = torch.tensor([[12 / 16, 8 / 16]])
    points = uncertain_points(logits, 60, ratios=ratios)
    on_left = points[0, :45, 0] < 0.5  # of the image, where it is least certain
    assert on_left.float().mean() > 0.8
    assert torch.equal(place(points, None), points)
    torch.testing.assert_close(place(points, ratios), points * torch.tensor([0.75, 0.5]))
