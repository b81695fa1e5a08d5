"""Criterion and inference against the slow ones of `reference.py`."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from torch import Tensor

from itpn_mm.detection.maskdino import MaskDINOFusionHead
from itpn_mm.maskdino.criterion import LOSSES, MaskDINOCriterion
from itpn_mm.maskdino.denoising import NoisyQueries, QueryDenoiser
from itpn_mm.maskdino.head import DICE, FOCAL, GIOU, L1, MASK
from itpn_mm.maskdino.inference import class_scores, segment_all, segment_classes
from itpn_mm.maskdino.predictor import Outputs, Predictions
from itpn_mm.maskdino.targets import Target

from . import reference
from .draws import share_draws
from .golden import cross_entropy

pytestmark = pytest.mark.checklist('parity')

POINTS, CLASSES, CHANNELS = 12, 3, 4
NAMES = ('', 'd0.', 'd1.', 'enc_')
# focal?, objects of the images, queries, losses of noisy queries, padded?, classes with boxes
CASES = {
    'focal': (True, (3, 2), 4, LOSSES, False, None),
    'padded': (True, (2, 3), 4, LOSSES, True, None),
    'cross-entropy': (False, (3, 1), 5, LOSSES, True, None),
    'one image empty': (True, (0, 3), 4, LOSSES, True, None),
    'cross-entropy, one empty': (False, (2, 0), 4, LOSSES, False, None),
    'all empty': (True, (0, 0), 3, LOSSES, True, None),
    'cross-entropy, all empty': (False, (0, 0), 3, LOSSES, False, None),
    'more objects than queries': (True, (5, 1), 3, LOSSES, False, None),
    'no masks of noisy queries': (True, (2, 2), 4, ('loss_cls', 'loss_bbox', 'loss_iou'), True, 2),
    'no denoising': (False, (2, 3), 4, (), False, 1),
}


def random_boxes(*shape: int) -> Tensor:
    """Centre and size; inside of the image."""
    size = torch.rand(*shape, 2) * 0.5 + 0.1
    centre = size / 2 + torch.rand(*shape, 2) * (1 - size)
    return torch.cat((centre, size), -1)


def random_targets(counts: tuple[int, ...], sizes: list[tuple[int, int]]) -> list[Target]:
    return [
        Target.from_masks(torch.randint(CLASSES, (count,)), torch.rand(count, *size) > 0.5)
        for count, size in zip(counts, sizes, strict=True)
    ]


def random_predictions(sets: int, images: int, queries: int, logits: int) -> Predictions:
    return Predictions(
        torch.randn(sets, images, queries, logits),
        random_boxes(sets, images, queries),
        torch.randn(sets, images, queries, CHANNELS),
    )


def slow_sets(names: tuple[str, ...], predictions: Predictions, features: Tensor) -> list:
    """The same for the reference, with whole masks."""
    return [
        reference.Set(
            name,
            logits.double().numpy(),
            boxes.double().numpy(),
            torch.einsum('bmc,bchw->bmhw', embeds.double(), features.double()).numpy(),
        )
        for name, (logits, boxes, embeds) in zip(names, predictions, strict=True)
    ]


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize('case', CASES)
def test_criterion(case, seed, monkeypatch):
    focal, counts, queries, noisy_losses, padded, boxed = CASES[case]
    torch.manual_seed(seed)
    sizes = [(12, 16), (16, 10)] if padded else [(16, 16)] * 2
    targets = random_targets(counts, sizes)
    features = torch.randn(2, CHANNELS, 4, 4)
    logits = CLASSES if focal else CLASSES + 1
    ratios = torch.tensor([(w / 16, h / 16) for h, w in sizes]) if padded else None

    names = NAMES if focal else NAMES[:-1]  # the selection's belongs to two stages
    matching = random_predictions(len(names), 2, queries, logits)
    groups, slots = 2 if any(counts) else 0, max(counts)
    noise, noisy = None, random_predictions(3, 2, groups * slots, logits)
    if groups and noisy_losses:
        pairs = QueryDenoiser._pairs(targets, groups, slots)
        noise = NoisyQueries(None, None, None, pairs, groups)
    outputs = Outputs(names, matching, features, ratios, noisy if noise else None, noise)
    criterion = MaskDINOCriterion(
        CLASSES,
        FOCAL if focal else cross_entropy(CLASSES),
        MASK,
        DICE,
        L1,
        GIOU,
        num_points=POINTS,
        num_boxed_classes=boxed,
        denoising_losses=noisy_losses,
        denoising_start=focal,
    )
    draws = share_draws(monkeypatch)
    found = criterion(outputs, targets)

    slow = reference.Criterion(
        CLASSES,
        lambda count: draws(count).double().numpy(),
        POINTS,
        None if focal else 0.1,
        boxed,
        None if ratios is None else ratios.tolist(),
    )
    objects = [
        reference.Objects(t.labels.numpy(), t.boxes.double().numpy(), t.masks.numpy())
        for t in targets
    ]
    wanted = slow(slow_sets(names, matching, features), objects)
    sets = slow_sets(names[:3], noisy, features)
    if not focal:
        del sets[1]  # what is there before the first layer has losses in two stages only
    if noise:
        losses = slow.denoising(sets, objects, groups, slots)
        wanted |= {name: losses[name] for name in losses if name.split('dn_')[1] in noisy_losses}
    else:
        wanted |= {f'{s.name}dn_{name}': 0.0 for s in sets for name in noisy_losses}
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5, abs=1e-5), name


def random_image(seed: int, no_object: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of classes, boxes and masks of queries."""
    torch.manual_seed(seed)
    # blobs, of which some cover others
    masks = torch.nn.functional.avg_pool2d(20 * torch.randn(1, 6, 7, 8), 5, 1, 2)[0] - 4
    return 2 * torch.randn(6, 4 + no_object), random_boxes(6), masks


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(('no_object', 'temperature'), [(True, None), (False, 0.06), (False, None)])
def test_semantic(no_object, temperature, seed):
    logits, _, masks = random_image(seed, no_object)
    scores = class_scores(logits, no_object, temperature)
    found = segment_classes(scores[None], masks[None])[0]
    wanted = reference.semantic(
        logits.double().numpy(), masks.double().numpy(), no_object, temperature
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('no_object', [False, True])
@pytest.mark.parametrize('mask_score', [False, True])
def test_instances(mask_score, no_object, seed):
    """From the padded batch to the image file."""
    logits, boxes, masks = random_image(seed, no_object)
    padded, size, original = (14, 16), (11, 16), (20, 13)
    meta = dict(batch_input_shape=padded, img_shape=size, ori_shape=original)
    config = dict(panoptic_on=False, instance_on=True, max_per_image=9, mask_score=mask_score)
    fusion = MaskDINOFusionHead(4, 0, test_cfg=config)
    sample = DetDataSample(metainfo=meta)
    (result,) = fusion.predict(logits[None], boxes[None], masks[None], [sample], True, no_object)
    found = result['ins_results']

    full = [reference.resize(mask, padded)[:11, :16] for mask in masks.double().numpy()]
    full = np.stack([reference.resize(mask, original) for mask in full])
    wanted = reference.instances(logits.double().numpy(), full, no_object, 9, mask_score)
    assert found.labels.tolist() == [label for _, label, _ in wanted]
    np.testing.assert_allclose(found.scores, [score for score, *_ in wanted], rtol=1e-5)
    for index, (_, _, query) in enumerate(wanted):
        assert np.array_equal(found.masks[index], full[query] > 0)
        box = np.array(reference.corners(boxes[query].double().tolist())) * (13, 20, 13, 20)
        np.testing.assert_allclose(found.bboxes[index], box, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('no_object', [False, True])
def test_panoptic(no_object):
    numbers = set()
    for seed in range(12):
        logits, _, masks = random_image(seed, no_object)
        segments, labels = segment_all(logits, masks, no_object, num_things=2)
        wanted, wanted_labels = reference.panoptic(
            logits.double().numpy(), masks.double().numpy(), no_object, 2, 0.06
        )
        assert np.array_equal(segments, wanted)
        assert labels == wanted_labels
        numbers.add(len(labels))
    assert len(numbers) > 2
