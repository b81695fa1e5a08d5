"""The losses against direct formulas over all patches."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.layers import patchify
from itpn_mm.pretraining import MFMHead, PatchMask, PixelReconstructionHead

from .models import DECODER, PYRAMID, STAGES

SIDES = {4: 4, 8: 2, 16: 1}
GRID, LENGTH, NUM_KEEP = (3, 4), 12, 5


def draw_mask(batch=2):
    return PatchMask.from_noise(torch.rand(batch, LENGTH), NUM_KEEP)


def draw_images(batch=2, patch=16):
    return torch.randn(batch, 3, GRID[0] * patch, GRID[1] * patch) * 2 + 1


def pixels_of(images, index, patch=16):
    """Pixels of a patch of each image in the order of the targets: (B, patch * patch * 3)."""
    top, left = patch * (index // GRID[1]), patch * (index % GRID[1])
    return images[:, :, top : top + patch, left : left + patch].permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
@pytest.mark.parametrize('norm_pix', [True, False])
@pytest.mark.parametrize('weight', [1.0, 0.5])
def test_pixel_loss(norm_pix, weight):
    head = PixelReconstructionHead(DECODER, norm_pix=norm_pix, loss_weight=weight)
    tokens, images, mask = torch.randn(2, LENGTH, DECODER), draw_images(), draw_mask()
    errors = torch.zeros(2, LENGTH)
    for index in range(LENGTH):
        target = pixels_of(images, index)
        if norm_pix:  # with n - 1 in the variance
            mean = target.mean(dim=1, keepdim=True)
            variance = (target - mean).square().sum(dim=1, keepdim=True) / (16 * 16 * 3 - 1)
            target = (target - mean) / (variance + 1e-6).sqrt()
        errors[:, index] = (head.pred(tokens[:, index]) - target).square().mean(dim=1)
    flags = mask.as_bool().float()
    losses = head.loss(tokens, images, mask)
    assert set(losses) == {'loss_pixel'}
    expected = weight * (errors * flags).sum() / flags.sum()
    torch.testing.assert_close(losses['loss_pixel'], expected)


def test_visible_patches_do_not_count():
    head, mask = PixelReconstructionHead(DECODER), draw_mask()
    tokens = torch.randn(2, LENGTH, DECODER, requires_grad=True)
    head.loss(tokens, draw_images(), mask)['loss_pixel'].backward()
    assert torch.equal(tokens.grad.abs().sum(dim=2) > 0, mask.as_bool())


def test_a_plain_patch_gives_a_finite_loss():
    head = PixelReconstructionHead(DECODER)
    tokens = torch.randn(2, LENGTH, DECODER)
    loss = head.loss(tokens, torch.full((2, 3, 48, 64), 2.0), draw_mask())['loss_pixel']
    loss.backward()
    assert loss.isfinite() and head.pred.weight.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize('norm_pix', [True, False])
def test_a_perfect_prediction_reconstructs_the_image(norm_pix):
    patch, dims = 4, 4 * 4 * 3
    head = PixelReconstructionHead(dims, patch_size=patch, norm_pix=norm_pix)
    head.pred.weight.copy_(torch.eye(dims))
    images = draw_images(patch=patch)
    tokens = torch.stack([pixels_of(images, i, patch) for i in range(LENGTH)], dim=1)
    assert torch.equal(tokens, patchify(images, patch))
    if norm_pix:
        tokens = (tokens - tokens.mean(2, keepdim=True)) / tokens.std(2, keepdim=True)
    torch.testing.assert_close(head.reconstruct(tokens, images), images, atol=1e-4, rtol=1e-4)
    assert head.loss(tokens, images, draw_mask())['loss_pixel'] < 1e-8


def build_mfm(positions, **kwargs):
    width = DECODER if positions == 'masked' else PYRAMID
    return MFMHead(STAGES, positions=positions, in_channels=width, **kwargs)


def draw_mfm(mask, patches):
    """Tokens, levels of the visible patches, and targets of `patches` (B, N)."""
    tokens = torch.randn(2, LENGTH, DECODER)
    levels = {s: torch.randn(2, NUM_KEEP * k, k, PYRAMID) for s, k in SIDES.items()}
    shapes = [(2, patches.shape[1] * k, k, c) for k, c in zip(SIDES.values(), STAGES)]
    return tokens, levels, [torch.randn(shape) * 3 + 1 for shape in shapes]


@torch.no_grad()
@pytest.mark.parametrize('positions', ['masked', 'visible'])
def test_mfm_loss(positions):
    head, mask = build_mfm(positions, loss_weight=0.7), draw_mask()
    patches = head.target_patches(mask)
    assert torch.equal(patches, mask.masked if positions == 'masked' else mask.keep)
    tokens, levels, targets = draw_mfm(mask, patches)
    losses = head.loss(tokens, levels, mask, targets)
    assert list(losses) == ['loss_mfm_p4', 'loss_mfm_p8', 'loss_mfm_p16']

    for (stride, side), channels, target in zip(SIDES.items(), STAGES, targets):
        proj, errors = head.projs[f'p{stride}'], []
        for b in range(2):
            for place, index in enumerate(patches[b]):
                for row in range(side):
                    for col in range(side):
                        wanted = target[b, place * side + row, col]
                        wanted = (wanted - wanted.mean()) / (wanted.var(correction=0) + 1e-5).sqrt()
                        if positions == 'masked':  # sub-tokens row by row
                            part = slice((row * side + col) * channels, None)
                            found = proj(tokens[b, index])[part][:channels]
                        else:
                            found = proj(levels[stride][b, place * side + row, col])
                        errors.append((found - wanted).square().mean())
        torch.testing.assert_close(losses[f'loss_mfm_p{stride}'], 0.7 * torch.stack(errors).mean())


@torch.no_grad()
def test_scale_of_the_targets_does_not_matter():
    head, mask = build_mfm('masked'), draw_mask()
    tokens, levels, targets = draw_mfm(mask, mask.masked)
    first = head.loss(tokens, levels, mask, targets)
    second = head.loss(tokens, levels, mask, [100 * x + 7 for x in targets])
    for name, loss in first.items():
        torch.testing.assert_close(second[name], loss, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_targets_as_they_are():
    head, mask = build_mfm('visible', norm_targets=False), draw_mask()
    tokens, levels, targets = draw_mfm(mask, mask.keep)
    losses = head.loss(tokens, levels, mask, targets)
    for stride, target in zip(SIDES, targets):
        error = (head.projs[f'p{stride}'](levels[stride]) - target).square().mean()
        torch.testing.assert_close(losses[f'loss_mfm_p{stride}'], 0.3 * error)


@pytest.mark.parametrize('positions', ['masked', 'visible'])
def test_what_the_feature_losses_train(positions):
    head, mask = build_mfm(positions), draw_mask()
    tokens, levels, targets = draw_mfm(mask, head.target_patches(mask))
    inputs = [tokens, *levels.values()]
    for x in inputs:
        x.requires_grad_()
    sum(head.loss(tokens, levels, mask, targets).values()).backward()
    assert all(p.grad.any() for p in head.parameters())
    if positions == 'masked':
        assert torch.equal(tokens.grad.abs().sum(dim=2) > 0, mask.as_bool())
        assert all(x.grad is None for x in levels.values())
    else:
        assert tokens.grad is None
        assert all(x.grad.abs().sum(dim=3).all() for x in levels.values())


def test_losses_of_half_precision_tokens_are_in_float32():
    mask = draw_mask()
    head = build_mfm('masked').bfloat16()
    tokens, levels, targets = draw_mfm(mask, mask.masked)
    losses = head.loss(tokens.bfloat16(), levels, mask, [x.bfloat16() for x in targets])
    pixel = PixelReconstructionHead(DECODER).bfloat16()
    losses |= pixel.loss(tokens.bfloat16(), draw_images(), mask)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.parametrize('weight', [0, 0.0, -0.3])
def test_lambda_of_zero(weight):
    """The teacher would run for nothing."""
    message = r'`loss_weight` of MFMHead must be above 0, but got .*leave out `mfm_head`'
    with pytest.raises(ValueError, match=message):
        build_mfm('masked', loss_weight=weight)


def test_bad_positions():
    with pytest.raises(ValueError, match="must be 'masked' or 'visible', but got 'all'"):
        MFMHead(positions='all')


def test_stages_and_strides_of_different_numbers():
    message = r'`stage_channels` \(8, 16\) and `strides` \(4, 8, 16\) of MFMHead must be of one'
    with pytest.raises(ValueError, match=message):
        MFMHead((8, 16))
