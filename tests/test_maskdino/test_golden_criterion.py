"""Matching and losses against the authors'."""

import pytest
import torch

from itpn_mm.maskdino import criterion as criterion_module
from itpn_mm.maskdino.criterion import MaskDINOCriterion
from itpn_mm.maskdino.denoising import NoisyQueries, QueryDenoiser
from itpn_mm.maskdino.head import DICE, FOCAL, GIOU, L1, MASK
from itpn_mm.maskdino.points import uncertain_points
from itpn_mm.maskdino.predictor import Outputs, Predictions
from itpn_mm.maskdino.targets import Target

from .golden import assert_close, cross_entropy, index, load, our_losses, theirs

pytestmark = pytest.mark.checklist('parity')

CRITERION = [name for name in index() if name.startswith('d') and 'criterion' in name]
FIXTURES = [*CRITERION, 'd6_uncertain_points']


def build(entry: dict) -> MaskDINOCriterion:
    num_classes = entry['num_classes']
    denoising = dict.fromkeys(
        name.rsplit('.')[-1].removeprefix('dn_') for name in our_losses(entry) if 'dn_' in name
    )
    ce = cross_entropy(num_classes, entry['eos_coef'])
    return MaskDINOCriterion(
        num_classes,
        loss_cls=ce if entry['use_ce'] else FOCAL,
        loss_mask=MASK,
        loss_dice=DICE,
        loss_bbox=L1,
        loss_iou=GIOU,
        num_points=entry['num_points'],
        num_boxed_classes=80 if entry['panoptic_box_loss'] else None,
        denoising_losses=list(denoising),
        denoising_start=entry['two_stage'],
    )


def make_outputs(entry: dict, tensors: dict, targets: list) -> Outputs:
    """Masks of the fixture: features have a channel for each, and its embedding picks that one."""
    groups, slots = entry['dn_groups'], entry['dn_slots_per_group']
    order = ['']
    order += [f'd{i}.' for i in range(9) if f'out.aux.{i}.pred_logits' in tensors]
    order += ['enc_'] if 'out.interm.pred_logits' in tensors else []
    features = []

    def predictions(part: str, names: list[str]) -> Predictions:
        sets = []
        for name in names:
            where = f'{theirs(name)}.' if name else ''
            found = {k: tensors[f'{part}.{where}pred_{k}'] for k in ('logits', 'boxes', 'masks')}
            features.append(found['masks'])
            sets.append([found['logits'], found['boxes']])
        return sets

    matching = predictions('out', order)
    noisy = predictions('dn', [n for n in order if n != 'enc_']) if groups else []
    channels = sum(f.shape[1] for f in features)
    start, embeds = 0, []
    for f in features:
        eye = torch.eye(channels)[start : start + f.shape[1]]
        embeds.append(eye.expand(len(f), -1, -1))
        start += f.shape[1]

    def join(sets: list, masks: list) -> Predictions:
        logits, boxes = (torch.stack(parts) for parts in zip(*sets, strict=True))
        return Predictions(logits, boxes, torch.stack(masks))

    noise = None
    if groups:
        pairs = QueryDenoiser._pairs(targets, groups, slots)
        noise = NoisyQueries(None, None, None, pairs, groups)
    return Outputs(
        tuple(order),
        join(matching, embeds[: len(order)]),
        torch.cat(features, 1),
        None,
        join(noisy, embeds[len(order) :]) if groups else None,
        noise,
    )


@pytest.mark.parametrize('name', CRITERION)
def test_golden_criterion(name, monkeypatch):
    entry, tensors = load(name)
    final = [f'{p}.pred_{k}' for p in ('out', 'dn') for k in ('logits', 'boxes', 'masks')]
    final = [key for key in final if key in tensors]
    for key in final:
        tensors[key].requires_grad_()
    targets = [
        Target(*(tensors[f'gt.{i}.{k}'] for k in ('labels', 'boxes')), tensors[f'gt.{i}.masks'] > 0)
        for i in range(len(entry['gt_counts']))
    ]
    targets = [Target(t.labels.long(), t.boxes, t.masks) for t in targets]
    outputs = make_outputs(entry, tensors, targets)
    criterion = build(entry)

    points = tensors['match_points']
    monkeypatch.setattr(criterion_module.torch, 'rand', lambda *_, **__: points)
    costs = [criterion.costs(outputs, i, target) for i, target in enumerate(targets)]
    pairs = criterion.match(outputs, targets)
    starts = [sum(entry['gt_counts'][:i]) for i in range(len(targets))]
    for s, set_name in enumerate(outputs.names):
        where = theirs(set_name)
        for i in range(len(targets)):
            assert_close(costs[i][s], tensors[f'cost.{where}.{i}'], entry)
            here = (pairs.sets == s) & (pairs.images == i)
            assert torch.equal(pairs.queries[here], tensors[f'match.{where}.{i}.query'].long())
            wanted = tensors[f'match.{where}.{i}.gt'].long()
            assert torch.equal(pairs.objects[here] - starts[i], wanted)

    give_points(tensors, outputs, entry, monkeypatch)
    losses = criterion(outputs, targets)
    assert set(losses) == set(our_losses(entry))
    for key, weight, wanted in zip(
        our_losses(entry), entry['loss_weights'], tensors['losses'], strict=True
    ):
        assert_close(losses[key], weight * wanted, entry)
    total = sum(losses.values())
    assert_close(total, tensors['total_weighted'].squeeze(), entry)
    total.backward()
    for key in final:
        wanted = tensors[f'grad.{key}']
        found = tensors[key].grad
        if found is None or wanted.numel() == 1:
            assert not wanted.any()
        else:
            assert_close(found, wanted, entry)


def give_points(tensors: dict, outputs: Outputs, entry: dict, monkeypatch) -> None:
    """Row r of the fixture's points is for the r-th pair of each set, image by image."""
    calls = iter(range(1000))
    images = len(entry['gt_counts'])
    sets = len(outputs.names)
    counts, queries = entry['gt_counts'], outputs.matching.boxes.shape[2]
    matched = [min(count, queries) for count in counts]
    groups = entry['dn_groups']

    def rows(image: int, noisy: bool) -> torch.Tensor:
        share = [groups * count for count in counts] if noisy else matched
        return torch.arange(sum(share[:image]), sum(share[: image + 1]))

    def points(logits, *_):
        call = next(calls)
        image, noisy = call % images, call >= images
        index = rows(image, noisy)
        repeats = len(logits) // max(len(index), 1)
        assert repeats in (0, sets, sets - 1, sets - 2)
        return tensors['loss_points'][index].repeat(repeats, 1, 1)

    monkeypatch.setattr(criterion_module, 'uncertain_points', points)


def test_golden_uncertain_points(monkeypatch):
    """The authors draw anew for each mask; the order of points does not matter."""
    entry, tensors = load('d6_uncertain_points')
    masks = tensors['mask_logits']
    assert len(masks) > 1
    for i, wanted in enumerate(tensors['points']):
        draws = iter([tensors[f'draw_{part}'][i : i + 1] for part in ('oversampled', 'random')])
        monkeypatch.setattr(torch, 'rand', lambda *_, draws=draws, **__: next(draws))
        (points,) = uncertain_points(masks[i], 20, 3.0, 0.75)
        assert_close(points[points[:, 0].argsort()], wanted[wanted[:, 0].argsort()], entry)
