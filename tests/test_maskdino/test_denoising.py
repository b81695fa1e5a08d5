"""Queries made of objects with noise."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.maskdino.denoising import QueryDenoiser
from itpn_mm.maskdino.targets import Target

WIDTH = 8


def targets_of(*counts: int, num_classes: int = 7) -> list[Target]:
    """Boxes well inside of the image, so that noise does not leave it."""
    return [
        Target(
            torch.randint(num_classes, (count,)),
            0.4 + 0.2 * torch.rand(count, 4),
            torch.ones(count, 1, 1, dtype=torch.bool),
        )
        for count in counts
    ]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_who_sees_whom(groups, slots, matching):
    blocked = QueryDenoiser.blocked(groups, slots, matching)
    noisy = groups * slots
    assert blocked.shape == (noisy + matching,) * 2
    for row, column in product(range(noisy + matching), repeat=2):
        if column >= noisy:
            wanted = False  # everybody sees matching queries
        elif row >= noisy:
            wanted = True  # which see no noisy ones
        else:
            wanted = row // slots != column // slots
        assert blocked[row, column].item() == wanted


def test_slots():
    """Group after group; slots without an object are zero."""
    counts = (2, 0, 3)
    targets = targets_of(*counts)
    denoiser = QueryDenoiser(7, WIDTH, num_queries=14, noise_scale=0.0)
    noise = denoiser(targets, 5)
    assert noise.num_groups == 14 // 3
    assert noise.content.shape == (3, 12, WIDTH)
    assert noise.box_logits.shape == (3, 12, 4)
    assert noise.blocked.shape == (17, 17)
    starts, pairs = (0, 2, 2), []
    for image, slot in product(range(3), range(12)):
        index = slot % 3
        content, box = noise.content[image, slot], noise.box_logits[image, slot]
        if index < counts[image]:
            label = targets[image].labels[index]
            assert torch.equal(content, denoiser.label_embed.weight[label])
            torch.testing.assert_close(box.sigmoid(), targets[image].boxes[index])
            pairs.append((image, slot, starts[image] + index))
        else:
            assert not content.any() and not box.any()
    found = zip(*(getattr(noise.pairs, k).tolist() for k in ('images', 'queries', 'objects')))
    assert sorted(found) == pairs


@pytest.mark.parametrize('counts', [(0, 0), (6, 1), (0, 101)])
def test_no_queries_without_objects_or_with_too_many(counts):
    assert QueryDenoiser(7, WIDTH, num_queries=5)(targets_of(*counts), 4) is None


def test_as_many_objects_as_queries_are_one_group():
    assert QueryDenoiser(7, WIDTH, num_queries=5)(targets_of(5, 2), 4).num_groups == 1


@pytest.mark.parametrize('scale', [0.1, 0.4, 1.0])
def test_noise(scale):
    """Boxes move within bounds, and over all of them; classes are drawn anew half as often."""
    count, num_classes = 400, 5
    targets = targets_of(count, num_classes=num_classes)
    denoiser = QueryDenoiser(num_classes, num_classes, num_queries=10 * count, noise_scale=scale)
    denoiser.label_embed.weight.data = torch.eye(num_classes)  # shows the label
    noise = denoiser(targets, 1)
    (target,) = targets
    labels = noise.content[0].argmax(1).view(10, count)
    boxes = noise.box_logits[0].sigmoid().view(10, count, 4)

    size = target.boxes[:, 2:]
    shift = (boxes - target.boxes) / torch.cat((size / 2, size), 1)
    assert shift.abs().max() <= scale + 1e-4
    for values in shift.flatten(0, 1).unbind(1):
        assert values.min() < -0.97 * scale and values.max() > 0.97 * scale
        assert values.mean().item() == pytest.approx(0, abs=0.03 * scale)
        assert values.std().item() == pytest.approx(scale / 3**0.5, rel=0.05)
    # a new label may be the old one
    changed = (labels != target.labels).float().mean().item()
    assert changed == pytest.approx(scale / 2 * (1 - 1 / num_classes), abs=0.03)
    new = labels[labels != target.labels].bincount(minlength=num_classes)
    assert (new > 0).all()
    assert not torch.equal(boxes[0], boxes[1])  # groups differ


def test_noise_stays_in_the_image():
    denoiser = QueryDenoiser(2, WIDTH, noise_scale=2.0)
    boxes = torch.tensor([[0.05, 0.95, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]])
    for sign in (-1.0, 1.0):
        labels = torch.tensor([0, 1])
        redrawn = torch.tensor([True, False])
        new, moved = denoiser.add_noise(
            labels, boxes, redrawn, torch.tensor([1, 0]), torch.full((2, 4), sign)
        )
        assert new.tolist() == [1, 1]
        assert (moved >= 0).all() and (moved <= 1).all()


def test_targets_of_noisy_queries_are_clean():
    targets = targets_of(3, 1)
    before = [target.boxes.clone() for target in targets]
    QueryDenoiser(7, WIDTH, noise_scale=1.0)(targets, 2)
    for target, boxes in zip(targets, before, strict=True):
        assert torch.equal(target.boxes, boxes)
