"""What an image is padded with makes no difference, whatever is in there."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from itpn_mm.maskdino import MaskDINOBase
from itpn_mm.maskdino.inference import resize
from itpn_mm.maskdino.padding import (
    PaddedGroupNorm,
    extend_image,
    find_image,
    find_ratios,
)
from itpn_mm.maskdino.predictor import Outputs, predict_masks
from itpn_mm.maskdino.targets import Target

from .draws import share_draws
from .heads import FIELDS, double_precision, make_maps, make_target, tiny_head, total

IMAGE = (50, 90)
FULL = (64, 96)  # without padding as long as it is alone
TWO_STAGE = dict(two_stage=True, mask_padding=True)
HEADS = {
    'one stage': dict(two_stage=False),
    'one stage, cross-entropy': dict(two_stage=False, loss_cls='ce'),
    'two stages': TWO_STAGE,
    'two stages, cross-entropy': dict(TWO_STAGE, loss_cls='ce', learned_content=True),
    # of 7 x 12, 4 x 6 and 2 x 3 cells of the image
    'all tokens': dict(TWO_STAGE, num_queries=114),
    'bitmask': dict(TWO_STAGE, box_init='bitmask'),
    'mask2box': dict(TWO_STAGE, box_init='mask2box', pixel_decoder=dict(num_levels=4)),
    'extra level': dict(TWO_STAGE, pixel_decoder=dict(num_levels=4, num_extra_levels=1)),
    'five levels': dict(
        TWO_STAGE, box_init='bitmask', pixel_decoder=dict(num_levels=5, num_extra_levels=1)
    ),
    'two extra levels': dict(two_stage=False, pixel_decoder=dict(num_levels=4, num_extra_levels=2)),
}


@pytest.fixture
def double() -> Iterator[None]:
    with double_precision():
        yield


def padded_sizes(
    head: MaskDINOBase, image: tuple[int, int] = IMAGE
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the image alone, to the coarsest stride; and of a batch."""
    extra = head.pixel_decoder.num_levels - head.pixel_decoder.num_encoded
    stride = 32 << extra
    height, width = (-(-side // stride) * stride for side in image)
    return (height, width), (2 * height, 2 * width)


def put(maps: list[Tensor], size: tuple[int, int], batch_size: tuple[int, int]) -> list[Tensor]:
    """The maps of an image (1, ...) in a batch, with garbage around."""
    out = []
    for index, level in enumerate(maps):
        stride = 4 << index
        rows, columns = (-(-side // stride) for side in size)
        wider = 100 * torch.randn(*level.shape[:2], *(side // stride for side in batch_size))
        wider[..., :rows, :columns] = level[..., :rows, :columns]
        out.append(wider)
    return out


def check_same(found: Outputs, wanted: Outputs, image: tuple[int, int]) -> None:
    """Predictions of the first image, of all sets, and its masks."""
    assert found.names == wanted.names
    for field in FIELDS:
        ours, alone = getattr(found.matching, field), getattr(wanted.matching, field)
        torch.testing.assert_close(ours[:, 0], alone[:, 0], rtol=1e-9, atol=1e-9)
    rows, columns = (-(-side // 4) for side in image)
    masks = [
        predict_masks(outputs.matching.mask_embeds[0], outputs.mask_features)[0]
        for outputs in (found, wanted)
    ]
    torch.testing.assert_close(
        masks[0][:, :rows, :columns], masks[1][:, :rows, :columns], rtol=1e-9, atol=1e-9
    )


CASES = [(name, IMAGE) for name in HEADS] + [
    (name, FULL) for name in ('one stage', 'bitmask', 'mask2box')
]


@pytest.mark.parametrize(('name', 'image'), CASES)
def test_image_alone_and_in_a_batch(name, image, double):
    head = tiny_head(**HEADS[name]).double().eval()
    alone, batch_size = padded_sizes(head, image)
    maps = put(make_maps(1, alone), image, alone)
    wider = put(maps, image, batch_size)
    other = make_maps(1, batch_size)  # without padding
    both = [torch.cat(levels) for levels in zip(wider, other, strict=True)]
    with torch.no_grad():
        wanted = head.segment(maps, [image], alone)
        check_same(head.segment(wider, [image], batch_size), wanted, image)
        check_same(head.segment(both, [image, batch_size], batch_size), wanted, image)
        ratios = [find_ratios([image], size, 'cpu') for size in (batch_size, alone)]
        tokens, few = (
            head.pixel_decoder(*inputs)[1].to_maps()
            for inputs in zip((wider, maps), ratios, strict=True)
        )
    for level, expected in zip(tokens, few, strict=True):
        inside = find_image(ratios[0], level.shape[-2:])[0]
        rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
        torch.testing.assert_close(
            level[..., :rows, :columns], expected[..., :rows, :columns], rtol=1e-9, atol=1e-9
        )


def test_masks_in_pixels_alone_and_in_a_batch(double):
    """Up to the last pixel of the image, which resizing would mix with what is behind it."""
    head = tiny_head().double().eval()
    alone, batch_size = padded_sizes(head, FULL)
    maps = put(make_maps(1, alone), FULL, alone)
    pixels = []
    with torch.no_grad():
        for size, levels in ((alone, maps), (batch_size, put(maps, FULL, batch_size))):
            _, _, masks = head.last_predictions(head.segment(levels, [FULL], size))
            pixels.append(resize(masks, size)[..., : FULL[0], : FULL[1]])
    torch.testing.assert_close(*pixels, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        without = head.segment(put(maps, FULL, batch_size), [FULL], batch_size)
        raw = predict_masks(without.matching.mask_embeds[0], without.mask_features)
    raw = resize(raw, batch_size)[..., : FULL[0], : FULL[1]]
    assert (raw - pixels[0]).abs().max() > 1e-3  # there is something to mend


def test_padding_is_seen_without_mask_padding(double):
    """Otherwise the test above would show nothing."""
    head = tiny_head(mask_padding=False).double().eval()
    alone, batch_size = padded_sizes(head)
    maps = make_maps(1, alone)
    with torch.no_grad():
        found = head.segment(put(maps, IMAGE, batch_size), [IMAGE], batch_size)
        wanted = head.segment(maps, [IMAGE], alone)
    with pytest.raises(AssertionError):
        check_same(found, wanted, IMAGE)


@pytest.mark.parametrize(('name', 'image'), CASES)
def test_losses_alone_and_in_a_batch(name, image, double):
    head = tiny_head(**HEADS[name]).double().train()
    alone, batch_size = padded_sizes(head, image)
    maps, target = put(make_maps(1, alone), image, alone), make_target(3, image)
    runs = []
    for size, levels in ((alone, maps), (batch_size, put(maps, image, batch_size))):
        padded = torch.zeros(3, *size, dtype=torch.bool)
        padded[:, : image[0], : image[1]] = target.masks
        fitted = head.fit_masks(padded, image, size)
        made = double_target(Target.from_masks(target.labels, fitted))
        torch.manual_seed(3)  # of noise and points
        head.zero_grad()
        losses = head.losses(levels, [image], size, [made])
        total(losses).backward()
        gradients = {k: p.grad.clone() for k, p in head.named_parameters() if p.grad is not None}
        runs.append((losses, gradients))
    (wanted, wanted_gradients), (found, found_gradients) = runs
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found_gradients, wanted_gradients, rtol=1e-6, atol=1e-6)


def double_target(target: Target) -> Target:
    return Target(target.labels, target.boxes.double(), target.masks)


def test_losses_of_a_batch_are_those_of_its_images(double, monkeypatch):
    """Each in its own padding: the mean, by the number of objects."""
    share_draws(monkeypatch)
    head = tiny_head(two_stage=True, box_init='bitmask', denoising=None).double().train()
    alone, batch_size = padded_sizes(head)
    sizes, counts = [IMAGE, (64, 48)], (3, 1)
    parts, targets, wanted = [], [], {}
    for size, count in zip(sizes, counts, strict=True):
        maps = put(make_maps(1, alone), size, alone)
        target = make_target(count, size)
        for key, loss in head.losses(maps, [size], alone, [target]).items():
            wanted[key] = wanted.get(key, 0) + loss * count / sum(counts)
        parts.append(put(maps, size, batch_size))
        targets.append(target)
    both = [torch.cat(levels) for levels in zip(*parts, strict=True)]
    found = head.losses(both, sizes, batch_size, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('box_init', ['no', 'bitmask', 'mask2box'])
def test_an_image_of_fewer_tokens_than_queries(box_init):
    """Queries from padding are of no use, but are numbers."""
    head = tiny_head(box_init=box_init).train()
    sizes, batch_size = [(8, 8), (64, 96)], (64, 96)
    maps = [level.requires_grad_() for level in make_maps(2, batch_size)]
    target = Target.from_masks(torch.tensor([0]), torch.ones(1, 8, 8, dtype=torch.bool))
    losses = head.losses(maps, sizes, batch_size, [target, make_target(2, batch_size)])
    assert all(loss.isfinite() for loss in losses.values())
    total(losses).backward()
    assert all(tensor.grad.isfinite().all() for tensor in [*maps, *head.parameters()])


@pytest.mark.parametrize('masked', [True, False])
def test_targets_are_of_the_image(masked):
    """Masks come padded or not; boxes are fractions of what counts as the image."""
    head = tiny_head(mask_padding=masked)
    mask = torch.zeros(1, 10, 20, dtype=torch.bool)
    mask[:, 2:6, 5:15] = True
    wanted = torch.tensor([10 / 20, 4 / 10, 10 / 20, 4 / 10])
    if not masked:
        wanted = wanted * torch.tensor([20 / 32, 10 / 16, 20 / 32, 10 / 16])
    padded = F.pad(mask, (0, 12, 0, 6))
    for given in (mask, padded):
        fitted = head.fit_masks(given, (10, 20), (16, 32))
        target = Target.from_masks(torch.tensor([1]), fitted)
        assert target.masks.shape == ((1, 10, 20) if masked else (1, 16, 32))
        assert target.masks.sum() == 40
        torch.testing.assert_close(target.boxes, wanted[None])


def test_group_norm_of_the_image():
    norm = PaddedGroupNorm(2, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    maps = torch.randn(2, 6, 5, 4)
    image = torch.zeros(2, 5, 4, dtype=torch.bool)
    image[0, :3, :2] = image[1, :5, :3] = True
    found = norm(maps * 1e3 * ~image[:, None] + maps, image)
    for index, (rows, columns) in enumerate([(3, 2), (5, 3)]):
        plain = torch.nn.GroupNorm.forward(norm, maps[index : index + 1, :, :rows, :columns])
        torch.testing.assert_close(found[index, :, :rows, :columns], plain[0])
    assert not found[~image[:, None].expand_as(found)].any()
    torch.testing.assert_close(norm(maps), norm(maps, torch.ones_like(image)))


def test_ratios():
    assert find_ratios([(8, 6), (8, 6)], (8, 6), 'cpu') is None
    found = find_ratios([(8, 6), (4, 3)], (8, 12), 'cpu')
    assert found.tolist() == [[0.5, 1.0], [0.25, 0.5]]  # width first


@pytest.mark.parametrize('width', [1, 7, 32, 33, 333, 640, 1333])
@pytest.mark.parametrize('stride', [4, 8, 32])
def test_cells_of_the_image(width, stride):
    """All that hold a part of it, and no other, though an accelerator's division is not exact."""
    batch_width = 1344
    exact = find_ratios([(8, width)], (8, batch_width), 'cpu')
    for factor in (1 - 2e-7, 1, 1 + 2e-7):
        found = find_image(exact * factor, (2, batch_width // stride))
        assert found.shape == (1, 2, batch_width // stride)
        assert found[0].sum(1).tolist() == [-(-width // stride)] * 2


def test_image_goes_on_in_the_padding():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    image = torch.zeros(1, 3, 4, dtype=torch.bool)
    image[:, :2, :3] = True
    found = extend_image(maps, image)[0, 0]
    assert found.tolist() == [[0, 1, 2, 2], [4, 5, 6, 6], [4, 5, 6, 6]]
