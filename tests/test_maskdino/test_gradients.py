"""All parameters learn, in every mode and whatever the batch holds; losses keep their names."""

import pytest
import torch

from itpn_mm.maskdino import criterion
from itpn_mm.maskdino.targets import Target

from .heads import NUM_CLASSES, make_maps, make_target, tiny_head, total

SIZE = (64, 96)
FIVE = (6, 7, 8, 9, 10)  # channels of maps
HEADS = {
    'one stage': dict(two_stage=False),
    'one stage, cross-entropy': dict(two_stage=False, loss_cls='ce'),
    'one stage, boxes of some': dict(two_stage=False, num_boxed_classes=1),
    'one stage, noisy boxes': dict(two_stage=False, denoising=dict(num_queries=6, masks=False)),
    'one stage alone': dict(two_stage=False, denoising=None),
    'two stages': dict(box_init='no'),
    'two stages, cross-entropy': dict(loss_cls='ce', learned_content=True, box_init='no'),
    'learned content': dict(learned_content=True, denoising=None),
    'bitmask': dict(box_init='bitmask', num_boxed_classes=2, double_norm=True),
    'mask2box': dict(box_init='mask2box', loss_cls='ce', denoising=dict(masks=False)),
    'three levels, two extra': dict(pixel_decoder=dict(num_levels=3, num_extra_levels=2)),
    'four of five maps': dict(in_channels=FIVE, pixel_decoder=dict(num_levels=4)),
    'five maps': dict(in_channels=FIVE, pixel_decoder=dict(num_levels=5)),
    'four levels': dict(pixel_decoder=dict(num_levels=4, num_extra_levels=0)),
    'four levels, one extra': dict(pixel_decoder=dict(num_levels=4, num_extra_levels=1)),
    'four levels, two extra': dict(pixel_decoder=dict(num_levels=4, num_extra_levels=2)),
    'five levels, one extra': dict(
        box_init='bitmask', pixel_decoder=dict(num_levels=5, num_extra_levels=1)
    ),
    'five levels, two extra': dict(pixel_decoder=dict(num_levels=5, num_extra_levels=2)),
    'padding is image': dict(mask_padding=False, box_init='mask2box'),
}
BATCHES = {  # objects of two images
    'objects': (3, 2),
    'one image empty': (0, 2),
    'all empty': (0, 0),
    'more objects than queries': (7, 1),
}


def losses_of(head, counts: tuple[int, int]) -> dict[str, torch.Tensor]:
    targets = [make_target(count, SIZE) for count in counts]
    maps = make_maps(2, SIZE, head.pixel_decoder.in_channels)
    return head.losses(maps, [SIZE] * 2, SIZE, targets)


@pytest.mark.parametrize('name', HEADS)
def test_all_parameters_have_gradients(name):
    """Those of masks and boxes are zero where nothing is to be found, but there."""
    head = tiny_head(**HEADS[name]).train()
    names = None
    for batch, counts in BATCHES.items():
        head.zero_grad(set_to_none=True)
        losses = losses_of(head, counts)
        assert names in (None, list(losses)), batch
        names = list(losses)
        assert all(loss.isfinite() and loss.shape == () for loss in losses.values()), batch
        total(losses).backward()
        missing = [key for key, p in head.named_parameters() if p.grad is None]
        assert not missing, (batch, missing)
        assert all(p.grad.isfinite().all() for p in head.parameters()), batch
        if batch == 'objects':
            flat = [key for key, p in head.named_parameters() if not p.grad.any()]
            assert not flat, flat


@pytest.mark.parametrize('two_stage', [True, False])
def test_processes_meet_as_often(two_stage, monkeypatch):
    """Whatever their part of the batch holds; else one would wait for the other for ever."""
    meetings = []
    monkeypatch.setattr(criterion, 'reduce_mean', lambda x: meetings.append(x.tolist()) or x)
    head, numbers = tiny_head(two_stage=two_stage).train(), set()
    for counts in BATCHES.values():
        meetings.clear()
        losses_of(head, counts)
        numbers.add(len(meetings))
    assert numbers == {1}


def test_more_than_a_hundred_objects():
    """Noisy queries are left out then, at the stock number of them."""
    head = tiny_head(denoising=dict(num_queries=100)).train()
    wanted = list(losses_of(head, (2, 1)))
    losses = losses_of(head, (101, 1))
    assert list(losses) == wanted
    assert all(loss == 0 for name, loss in losses.items() if 'dn_' in name)
    total(losses).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_names_of_losses():
    """As spec'd for logs: sets of predictions of two layers, the queries, and the selection."""
    kinds = ('cls', 'mask', 'dice', 'bbox', 'iou')
    head = tiny_head(denoising=dict(num_queries=6, masks=False)).train()
    wanted = {f'{s}loss_{kind}' for s in ('', 'd0.', 'd1.', 'enc_') for kind in kinds}
    wanted |= {f'{s}dn_loss_{kind}' for s in ('', 'd0.', 'd1.') for kind in ('cls', 'bbox', 'iou')}
    assert set(losses_of(head, (1, 2))) == wanted
    head = tiny_head(two_stage=False).train()
    wanted = {f'{s}loss_{kind}' for s in ('', 'd0.', 'd1.') for kind in kinds}
    wanted |= {f'{s}dn_loss_{kind}' for s in ('', 'd1.') for kind in kinds}
    assert set(losses_of(head, (1, 2))) == wanted


@pytest.mark.parametrize('boxed', [0, 1, NUM_CLASSES])
def test_classes_without_boxes(boxed):
    """Boxes of classes behind the first ones do not count; the number of objects stays."""
    head = tiny_head(num_boxed_classes=boxed, denoising=None, two_stage=False).train()
    target = make_target(3, SIZE)
    target = Target(torch.arange(3), target.boxes, target.masks)
    maps = make_maps(1, SIZE)
    runs = []
    for limit in (boxed, None):
        head.criterion.num_boxed_classes = limit
        torch.manual_seed(1)
        runs.append(head.losses(maps, [SIZE], SIZE, [target]))
    limited, full = runs
    for name, loss in full.items():
        if ('bbox' not in name and 'iou' not in name) or boxed == NUM_CLASSES:
            assert limited[name] == loss
        elif boxed == 0:
            assert limited[name] == 0
        else:
            assert 0 < limited[name] < loss
