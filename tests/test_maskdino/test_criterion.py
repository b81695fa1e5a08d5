"""Losses computed by hand, and matching against all ways to match."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.maskdino.criterion import MATCH_COSTS, MaskDINOCriterion
from itpn_mm.maskdino.head import DICE, FOCAL, GIOU, L1, MASK
from itpn_mm.maskdino.predictor import Outputs, Predictions
from itpn_mm.maskdino.targets import Target

from .golden import cross_entropy
from .reference import cheapest


def build(num_classes: int, loss_cls: dict = FOCAL, **options: object) -> MaskDINOCriterion:
    return MaskDINOCriterion(num_classes, loss_cls, MASK, DICE, L1, GIOU, **options)


def one_query(cls_logits: list[float], mask_logit: float) -> tuple[Outputs, list[Target]]:
    """A mask that is the same everywhere, and an object of class 1 that fills the image.

    The predicted box is the left half of the image.
    """
    predictions = Predictions(
        torch.tensor(cls_logits).view(1, 1, 1, -1),
        torch.tensor([0.25, 0.5, 0.5, 1.0]).view(1, 1, 1, 4),
        torch.tensor([[[[mask_logit]]]]),
    )
    # points next to the border would see the nothing behind it
    target = Target.from_masks(torch.tensor([1]), torch.ones(1, 8, 8, dtype=torch.bool))
    return Outputs(('',), predictions, torch.ones(1, 1, 4, 4)), [target]


@pytest.fixture
def central_points(monkeypatch):
    """Random points away from the border."""
    rand = torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *shape, **kwargs: 0.3 + 0.4 * rand(*shape, **kwargs))


def test_losses_by_hand(central_points):
    """One query, one object, two classes."""
    outputs, targets = one_query([0.0, math.log(3)], math.log(4))
    losses = build(2, num_points=20)(outputs, targets)
    # p = 1/2 for the wrong class and 3/4 for the right one; weight 4, alpha 1/4, gamma 2
    wrong = 4 * (3 / 4) * (1 / 2) ** 2 * math.log(2)
    right = 4 * (1 / 4) * (1 / 4) ** 2 * math.log(4 / 3)
    # p = 4/5 at all 20 points of the mask, where the object is
    mask = 5 * math.log(5 / 4)
    dice = 5 * (1 - (2 * 20 * 4 / 5 + 1) / (20 * 4 / 5 + 20 + 1))
    # (0.25, 0.5, 0.5, 1) against (0.5, 0.5, 1, 1)
    bbox = 5 * (0.25 + 0 + 0.5 + 0)
    # half of the object, and the hull is the object
    iou = 2 * (1 - 1 / 2)
    wanted = dict(loss_cls=wrong + right, loss_mask=mask, loss_dice=dice, loss_bbox=bbox)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        wanted | dict(loss_iou=iou), rel=1e-5
    )


def test_cross_entropy_by_hand(central_points):
    """Two queries: the second is of no object, and weighs a tenth."""
    outputs, targets = one_query([0.0, math.log(2), 0.0], 1.0)
    first = outputs.matching
    predictions = Predictions(
        torch.cat((first.cls_logits, torch.tensor([[[[0.0, 0.0, math.log(3)]]]])), 2),
        first.boxes.expand(-1, -1, 2, -1) * torch.tensor([[1.0], [0.1]]),
        first.mask_embeds * torch.tensor([[1.0], [-1.0]]),
    )
    outputs = Outputs(('',), predictions, outputs.mask_features)
    losses = build(2, cross_entropy(2), num_points=20)(outputs, targets)
    # probabilities 2/4 of class 1, and 3/5 of "no object"
    wanted = 4 * (math.log(2) + 0.1 * math.log(5 / 3)) / 1.1
    assert losses['loss_cls'].item() == pytest.approx(wanted, rel=1e-5)


@st.composite
def problems(draw):
    queries, objects = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    # whole numbers, so that there are ties
    cost = st.integers(-9, 9) if draw(st.booleans()) else st.floats(-9, 9, width=32)
    row = st.lists(cost, min_size=objects, max_size=objects)
    return draw(st.lists(st.lists(row, min_size=queries, max_size=queries), min_size=1, max_size=2))


@given(problems())
@settings(max_examples=60, deadline=None)
def test_matching_is_the_cheapest(costs):
    """Each set by itself; each query and each object once."""
    costs = torch.tensor(costs, dtype=torch.float64)
    sets, queries, objects = costs.shape
    empty = Predictions(*(torch.zeros(sets, 1, queries, 1) for _ in range(3)))
    outputs = Outputs(('', 'd0.')[:sets], empty, torch.zeros(1, 1, 1, 1))
    criterion = build(2)
    criterion.costs = lambda *_: costs
    target = Target(torch.zeros(objects), torch.zeros(objects, 4), torch.zeros(objects, 1, 1))
    pairs = criterion.match(outputs, [target])
    for index, cost in enumerate(costs):
        here = pairs.sets == index
        chosen = list(zip(pairs.queries[here].tolist(), pairs.objects[here].tolist()))
        assert len(chosen) == min(queries, objects)
        for side in zip(*chosen):
            assert len(set(side)) == len(side)
        best = cheapest(cost.tolist()) if objects else []
        total, lowest = (sum(float(cost[pair]) for pair in found) for found in (chosen, best))
        assert total == pytest.approx(lowest, abs=1e-6)
    assert not pairs.images.any()


def test_objects_are_counted_over_the_batch():
    """Pairs of the third image go on where the first one's objects end."""
    targets = [
        Target.from_masks(torch.zeros(n).long(), torch.ones(n, 4, 4).bool()) for n in (2, 0, 3)
    ]
    predictions = Predictions(
        torch.randn(1, 3, 4, 2), torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 1)
    )
    pairs = build(2, num_points=4).match(
        Outputs(('',), predictions, torch.rand(3, 1, 4, 4)), targets
    )
    assert pairs.images.tolist() == [0, 0, 2, 2, 2]
    assert sorted(pairs.objects.tolist()) == [0, 1, 2, 3, 4]
    assert pairs.objects[:2].max() == 1


@pytest.mark.parametrize('part', range(5))
def test_each_cost_decides_where_the_others_do_not(part):
    """Two queries that differ in one thing, and two objects that do."""
    sides = torch.zeros(2, 8, 8, dtype=torch.bool)
    sides[0, :, :4] = sides[1, :, 4:] = True
    same = Target.from_masks(torch.tensor([1, 1]), torch.ones(2, 8, 8, dtype=torch.bool))
    labels, boxes, masks = same.labels, same.boxes, same.masks
    cls_logits, query_boxes, embeds = torch.zeros(2, 2), boxes.clone(), torch.ones(2, 2)
    if part == 0:
        labels, cls_logits = torch.tensor([0, 1]), torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    elif part in (1, 2):
        masks, embeds = sides, torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    else:
        boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]])
        query_boxes = boxes.flip(0) + torch.tensor([0.05, 0, 0, 0])
    features = torch.stack((sides[0, ::2, ::2], sides[1, ::2, ::2])).float()[None] * 4
    target = Target(labels, boxes, masks)
    predictions = Predictions(*(t[None, None] for t in (cls_logits, query_boxes, embeds)))
    criterion = build(2, num_points=30, match_costs=[MATCH_COSTS[part]])
    pairs = criterion.match(Outputs(('',), predictions, features), [target])
    assert pairs.objects[pairs.queries.argsort()].tolist() == [1, 0]
