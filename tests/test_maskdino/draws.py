"""Random points that do not depend on how many masks they are drawn for, nor in which order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def points_of(count: int) -> Tensor:
    """(count, 2): the same ones each time."""
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(count))


def share_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Tensor]:
    """Have all masks of all images draw the same points; returns what these are."""
    rand = torch.rand

    def draw(*shape: int, **options: object) -> Tensor:
        if len(shape) != 3 or shape[2] != 2:
            return rand(*shape, **options)
        return points_of(shape[1]).to(torch.get_default_dtype()).expand(*shape)

    monkeypatch.setattr(torch, 'rand', draw)
    return points_of
