"""The decoder against the formula: the levels add up, mask tokens fill in, positions are fixed."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.layers import sincos_pos_embed
from itpn_mm.pretraining import MIMDecoder, PatchMask

from .models import DECODER, PYRAMID

SIDES = {4: 4, 8: 2, 16: 1}


def build(**kwargs):
    torch.manual_seed(0)
    options = dict(embed_dims=DECODER, depth=2, num_heads=3, img_size=64, **kwargs)
    decoder = MIMDecoder(PYRAMID, **options)
    for parameter in decoder.parameters():  # biases and norms are trivial at the start
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def draw(grid=(4, 4), batch=2, num_keep=5, strides=(4, 8, 16)):
    mask = PatchMask.from_noise(torch.rand(batch, grid[0] * grid[1]), num_keep)
    sides = [SIDES[s] for s in strides]
    levels = {s: torch.randn(batch, num_keep * k, k, PYRAMID) for s, k in zip(strides, sides)}
    return levels, mask


def formula(decoder, levels, mask, grid):
    """Patch by patch: each level filled with the mask token, then the sum."""
    length = grid[0] * grid[1]
    x = torch.zeros(len(mask.keep), length, DECODER)
    for stride, level in levels.items():
        embed, side = decoder.embeds[f'p{stride}'], SIDES[stride]
        for b, keep in enumerate(mask.keep.tolist()):
            for index in range(length):
                if index not in keep:
                    x[b, index] += decoder.mask_token[0, 0]
                    continue
                place = keep.index(index)
                patch = level[b, place * side : (place + 1) * side]  # (side, side, F)
                tokens = [embed.proj(embed.norm(t)) for row in patch for t in row]
                x[b, index] += torch.cat(tokens)
    x = x + sincos_pos_embed(grid, DECODER)
    for block in decoder.blocks:
        x = block(x)
    return decoder.norm(x)


@torch.no_grad()
@pytest.mark.parametrize('strides', [(4, 8, 16), (8, 16), (16,)])
@pytest.mark.parametrize('grid', [(4, 4), (3, 5)])
def test_formula(grid, strides):
    decoder = build(strides=strides)
    levels, mask = draw(grid, strides=strides)
    found = decoder(levels, mask, grid)
    torch.testing.assert_close(found, formula(decoder, levels, mask, grid), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_order_of_the_visible_patches_does_not_matter():
    decoder, (levels, mask) = build(), draw()
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = {s: x.unflatten(1, (5, SIDES[s]))[:, order].flatten(1, 2) for s, x in levels.items()}
    found = decoder(shuffled, PatchMask(mask.keep[:, order], mask.masked), (4, 4))
    torch.testing.assert_close(found, decoder(levels, mask, (4, 4)))


def test_positions_are_not_trained():
    decoder = build()
    assert 'pos_embed' in decoder.state_dict()
    assert 'pos_embed' not in dict(decoder.named_parameters())
    torch.testing.assert_close(decoder.pos_embed, sincos_pos_embed((4, 4), DECODER))


def test_every_parameter_gets_a_gradient():
    decoder, (levels, mask) = build(), draw()
    decoder(levels, mask, (4, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())


@pytest.mark.parametrize(
    'options',
    [
        dict(embed_dims=40, num_heads=4),  # not a multiple of the 16 sub-tokens
        dict(embed_dims=48, num_heads=5),
    ],
)
def test_bad_width(options):
    with pytest.raises(ValueError, match=r'`embed_dims` of the decoder must be a multiple of '):
        MIMDecoder(PYRAMID, **options)


@pytest.mark.parametrize('strides', [(16, 8, 4), (4, 4, 16), (4, 6, 16), ()])
def test_bad_strides(strides):
    with pytest.raises(ValueError, match='`strides` of the decoder must rise'):
        MIMDecoder(PYRAMID, strides=strides)
