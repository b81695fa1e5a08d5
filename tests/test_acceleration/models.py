"""Tiny backbones with an acceleration, all of whose weights are random."""

import torch
from torch import Tensor

from itpn_mm.acceleration import TokenMigration
from itpn_mm.backbones import FastiTPN, HiViT

PATCH = 4  # pixels, so that grids are large and images small
WIDTH, HEADS = 16, 2


def plain(
    kind: type[HiViT] = HiViT, depth: int = 3, grid: tuple[int, int] = (4, 4), **kwargs
) -> HiViT:
    """A backbone without acceleration, in which attention is far from uniform."""
    arch = dict(embed_dims=WIDTH, depths=(1, 1, depth), num_heads=HEADS)
    size = tuple(PATCH * n for n in grid)
    model = kind(arch, **{'img_size': size, 'patch_size': PATCH, 'mlp_ratio': 2.0, **kwargs})
    return randomise(model)


def accelerated(backbone: HiViT | None = None, **options) -> HiViT:
    """``backbone`` with the acceleration ``options``, none of whose weights are as initialised."""
    return randomise(TokenMigration(backbone or plain(), **options))


def randomise(model: HiViT) -> HiViT:
    """Draw all parameters anew, so that no branch is too small to matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5
            if name.endswith('weight') and parameter.ndim > 1:
                spread = parameter[0].numel() ** -0.5
            parameter.normal_(0, spread)
            if 'norm' in name and name.endswith('weight'):
                parameter.add_(1)
    return model


def images(grid: tuple[int, int], batch: int = 1, **kwargs) -> Tensor:
    """Random images with a grid of patches."""
    return torch.randn(batch, 3, *(PATCH * n for n in grid), **kwargs)


__all__ = ['HEADS', 'PATCH', 'WIDTH', 'FastiTPN', 'HiViT', 'accelerated', 'images', 'plain']
