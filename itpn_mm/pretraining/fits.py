"""Whether the parts of a pre-training model fit each other."""

from collections.abc import Iterable
from typing import Any

from torch import nn

Fit = tuple[str, Any, str, Any]


def chain_fits(backbone: nn.Module, neck: nn.Module, decoder: nn.Module) -> list[Fit]:
    """What has to be equal along backbone, pyramid and decoder."""
    return [
        ('neck.in_channels', neck.in_channels, 'backbone.out_channels', backbone.out_channels),
        ('neck.in_strides', neck.in_strides, 'backbone.strides', backbone.strides),
        ('decoder.in_channels', decoder.in_channels, 'neck.out_channels', neck.out_channels),
        ('decoder.strides', decoder.strides, 'neck.out_strides', neck.out_strides),
    ]


def check_fits(fits: Iterable[Fit]) -> None:
    """Check (argument, its value, other argument, the value of that) for equal values.

    Raises:
        ValueError: Two values differ; the message names both arguments.
    """
    for name, value, other, expected in fits:
        if value != expected:
            raise ValueError(f'`{name}` must be equal to `{other}` = {expected}, but got {value}')
