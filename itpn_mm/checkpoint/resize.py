"""Resizing position parameters of a state dict to the grid of the model that loads it."""

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from itpn_mm.layers.position import (
    NUM_CLS_ROWS,
    DecomposedRelativePosition,
    DecoupledRelativePositionBias,
    RelativePositionBias,
    resize_decoupled_table,
    resize_pos_embed,
    resize_rel_pos_1d,
    resize_rel_pos_table,
)

from .architecture import square_grid, square_window

Shape = tuple[int, ...]


def resize_positions(
    module: nn.Module, state: dict[str, Any], prefix: str = ''
) -> dict[str, tuple[Shape, Shape]]:
    """Resize the position parameters in a state dict to the grid of the module, in place.

    Resized are the position embedding of a module with a ``grid`` (bicubic to the size), and the
    tables of :class:`RelativePositionBias` (as its ``resize_mode`` says),
    :class:`DecoupledRelativePositionBias` (geometric) and :class:`DecomposedRelativePosition`
    (linear). What they hold of a class token is kept. A state dict does not tell its grid: it is
    taken to be square. Parameters of equal shape are left alone (a model of 7 x 28 patches resumes;
    a 14 x 14 embedding is taken by it as it is), and so are those that differ in more than the
    grid.

    Args:
        module: The module that is going to load the state dict.
        state: State dict in our layout, changed in place.
        prefix: What precedes the module's names in it.

    Returns:
        Name in the state dict -> shapes before and after.

    Raises:
        ValueError: The grid of the state dict is not square, or one of the two has a class token.
    """
    resized = {}
    for path, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f'{prefix}{path}.{leaf}' if path else f'{prefix}{leaf}'
            source = state.get(name)
            if not isinstance(source, Tensor) or source.shape == parameter.shape:
                continue
            target = _resize(owner, leaf, name, source.detach(), parameter)
            if target is not None:
                state[name] = target
                resized[name] = (tuple(source.shape), tuple(target.shape))
    return resized


def _resize(
    owner: nn.Module, leaf: str, name: str, source: Tensor, parameter: nn.Parameter
) -> Tensor | None:
    """The resized parameter; ``None`` if it is no position or differs in more than the grid."""
    if source.ndim != parameter.ndim or source.shape[-1] != parameter.shape[-1]:
        return None
    if leaf == 'pos_embed' and hasattr(owner, 'grid') and source.shape[0] == parameter.shape[0]:
        prefix = getattr(owner, 'num_prefix_tokens', 0)  # a class token, whose position is kept
        grid = square_grid(source.shape[1] - prefix)
        if grid is None:
            other = square_grid(source.shape[1] - (1 - prefix)) is not None
            raise ValueError(_unfit(name, source, 'number of tokens', prefix, other))
        extra, body = source.split([prefix, source.shape[1] - prefix], dim=1)
        return torch.cat([extra, resize_pos_embed(body, grid, owner.grid)], dim=1)
    num_extra = getattr(owner, 'num_extra', 0)
    if leaf == 'table' and isinstance(owner, RelativePositionBias):
        window = square_window(source.shape[0] - num_extra)
        if window is None:
            other = square_window(source.shape[0] - (NUM_CLS_ROWS - num_extra)) is not None
            raise ValueError(_unfit(name, source, 'number of rows', num_extra, other))
        return resize_rel_pos_table(
            source, (window, window), owner.window, owner.resize_mode, num_extra
        )
    if leaf in ('table_h', 'table_w') and isinstance(owner, DecoupledRelativePositionBias):
        if (source.shape[0] - num_extra) % 2 == 0:  # three rows more or less
            raise ValueError(_unfit(name, source, 'number of rows', num_extra, True))
        size = (parameter.shape[0] - num_extra + 1) // 2
        return resize_decoupled_table(source, size, num_extra)
    if leaf in ('table_h', 'table_w') and isinstance(owner, DecomposedRelativePosition):
        return resize_rel_pos_1d(source, (parameter.shape[0] + 1) // 2)
    return None


def _unfit(name: str, source: Tensor, what: str, has_cls: int, other: bool) -> str:
    """Why a position does not fit: it is that of a rectangle, or of a model with a class token.

    Args:
        name: Its name.
        source: What the checkpoint holds.
        what: What of its shape does not fit.
        has_cls: Whether the model has a class token (not 0).
        other: Whether it would fit a model of the opposite kind.
    """
    start = f'`{name}` of shape {tuple(source.shape)}'
    if other:
        theirs, ours = ('without', 'with') if has_cls else ('with', 'without')
        return (
            f'{start} is that of a model {theirs} a class token, but this one is {ours}: '
            f'build the backbone with `cls_token={not has_cls}`'
        )
    return (
        f'{start} cannot be resized: its {what} is not that of '
        'a square grid, and a checkpoint does not tell the grid; build the model with the '
        '`img_size` of the checkpoint'
    )


def resize_on_load(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Load pre-hook: what a Runner loads or resumes, into a module at any depth, is resized too."""
    for name, (old, new) in resize_positions(module, state, prefix).items():
        print_log(f'resized `{name}` from {old} to {new} on loading', 'current', logging.INFO)
