"""HiViT on some of the patches: the same as the dense model wherever the two can be compared."""

import pytest
import torch

from itpn_mm.layers import TokenGrid
from itpn_mm.necks import TransformerPyramidNeck
from tests.checklist import note_difference

from .test_hivit import REL_POS, build

SIZES = [(64, 64), (48, 80), (40, 70)]  # the native grid, another one, one that is padded


def grid_of(size):
    return tuple(-(-n // 16) for n in size)


def patches_of(x, keep, side):
    """The patches ``keep`` of a dense map (B, h * s, w * s, C) in one column (B, V * s, s, C)."""
    b, height, width, c = x.shape
    x = x.view(b, height // side, side, width // side, side, c).transpose(2, 3)
    x = x.reshape(b, -1, side, side, c)
    return torch.stack([one[ids] for one, ids in zip(x, keep)]).flatten(1, 2)


def draw(batch, size, share=1.0):
    h, w = grid_of(size)
    return torch.rand(batch, h * w).argsort(1)[:, : int(share * h * w)]


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('rel_pos', REL_POS)
@pytest.mark.parametrize('shuffled', [False, True])
def test_all_patches_kept_equals_dense(size, rel_pos, shuffled):
    model, images = build(rel_pos_bias=rel_pos).eval(), torch.randn(2, 3, *size)
    h, w = grid_of(size)
    keep = draw(2, size) if shuffled else torch.arange(h * w).expand(2, -1)
    dense, masked = model.forward_stages(images), model.forward_stages(images, keep)
    expected = [patches_of(x, keep, side) for x, side in zip(dense, (4, 2, 1))]
    note_difference('masking of 0 %', masked, expected, '<= 1e-5')
    for x, y in zip(expected, masked):
        torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_early_stages_see_one_patch_at_a_time():
    model, images, size = build().eval(), torch.randn(2, 3, 48, 80), (48, 80)
    keep = draw(2, size, 0.5)
    masked = model.forward_stages(images, keep)
    for b in range(2):
        for place, index in enumerate(keep[b].tolist()):
            top, left = 16 * (index // 5), 16 * (index % 5)
            patch = images[b : b + 1, :, top : top + 16, left : left + 16]
            alone = model.forward_stages(patch)
            for x, y, side in zip(masked[:2], alone, (4, 2)):
                torch.testing.assert_close(x[b, place * side : (place + 1) * side], y[0])


@torch.no_grad()
@pytest.mark.parametrize('rel_pos', REL_POS)
def test_attention_sees_the_kept_patches_only_each_at_its_place(rel_pos):
    """As the dense model gives it when all other keys are hidden."""
    model, images, size = build(rel_pos_bias=rel_pos).eval(), torch.randn(2, 3, 48, 80), (48, 80)
    keep = draw(2, size, 0.4)
    masked = model.forward_stages(images, keep)[2][:, :, 0]

    hidden = torch.full((2, 15), -torch.inf).scatter(1, keep, 0)[:, None, None]
    seen = {}
    model.stages[2][0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model.forward_stages(images)
    x, tokens = seen['x'], TokenGrid(3, 5)
    for block in model.stages[2]:
        bias = hidden
        if rel_pos == 'shared':
            bias = hidden + model.rel_pos(x, tokens)
        elif rel_pos is not None:
            bias = hidden + block.attn.rel_pos(queries(block, x), tokens)
        attention, block.attn.rel_pos = block.attn.rel_pos, None
        x = block(x, tokens, bias)
        block.attn.rel_pos = attention
    expected = torch.stack([one[ids] for one, ids in zip(x, keep)])
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=1e-4)


def queries(block, x):
    b, length, _ = x.shape
    qkv = block.attn.qkv(block.norm1(x)).view(b, length, 3, block.attn.num_heads, -1)
    return qkv[:, :, 0].transpose(1, 2)


def test_a_masked_patch_is_never_looked_at():
    model, images = build(), torch.randn(2, 3, 64, 64)
    keep = draw(2, (64, 64), 0.25)
    spoilt = images.unfold(2, 16, 16).unfold(3, 16, 16).clone()  # (b, 3, h, w, 16, 16)
    mask = torch.ones(2, 16, dtype=torch.bool).scatter(1, keep, False).view(2, 4, 4)
    spoilt.permute(0, 2, 3, 1, 4, 5)[mask] = torch.nan
    spoilt = spoilt.transpose(3, 4).reshape(images.shape)
    assert spoilt.isnan().any()
    for x, y in zip(model.forward_stages(images, keep), model.forward_stages(spoilt, keep)):
        assert torch.equal(x, y)


def test_masked_shapes_and_gradients():
    model, images = build(rel_pos_bias='block'), torch.randn(2, 3, 64, 64)
    keep = draw(2, (64, 64), 0.25)
    maps = model.forward_stages(images, keep)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 4, 4), (2, 8, 2, 8), (2, 4, 1, 16)]
    sum(x.square().sum() for x in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_mask_means_no_mask():
    """mmpretrain's iTPN masks at random even when it is told not to."""
    model, images = build(), torch.randn(1, 3, 64, 64)
    first, second = model.forward_stages(images), model.forward_stages(images, None)
    for x, y in zip(first, second):
        assert torch.equal(x, y)
    assert first[2].shape[1:3] == (4, 4)


@torch.no_grad()
def test_the_pyramid_of_some_patches():
    """Nothing of the pyramid crosses the border of a patch."""
    backbone, neck = build().eval(), TransformerPyramidNeck((4, 8, 16), 8).eval()
    images, keep = torch.randn(2, 3, 48, 80), draw(2, (48, 80), 0.5)
    maps = backbone.forward_stages(images)
    dense = neck.forward_levels(maps)
    kept = [patches_of(x, keep, side) for x, side in zip(maps, (4, 2, 1))]
    masked = neck.forward_levels(kept)
    assert dense.keys() == masked.keys() == {4, 8, 16}
    for stride, x in masked.items():
        torch.testing.assert_close(x, patches_of(dense[stride], keep, 16 // stride))
