"""Random points that do not depend on how many masks they are drawn for, nor in which order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def shared_rand() -> Callable[..., Tensor]:
    """What to put in the place of `torch.rand`, so that all masks of all images share points."""
    rand = torch.rand

    def draw(*shape: int, **options: object) -> Tensor:
        if len(shape) != 3 or shape[2] != 2:
            return rand(*shape, **options)
        generator = torch.Generator().manual_seed(shape[1])
        return rand(shape[1], 2, generator=generator).expand(*shape)

    return draw


def share_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Tensor]:
    """Have all masks of all images draw the same points; returns what these are."""
    draw = shared_rand()
    monkeypatch.setattr(torch, 'rand', draw)
    return lambda count: draw(1, count, 2)[0]
