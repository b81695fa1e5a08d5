"""Matrix products of a pass: as torch counts them, and by a closed form of our own.

The closed form knows the acceleration: tokens that have left and windows. It is written from the
definitions, apart from the code that runs, so that one checks the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import (
    MODELS,
    OUT_CHANNELS,
    PYRAMIDS,
    Candidate,
    TokenMigration,
    arguments_of,
    skeleton,
)

# MLP ratios of the stages 1 and 2, and of stage 3; linear layers of an MLP in units of its size
RATIOS = dict(hivit=(3, 4), fastitpn=(3, 3))
STAGE_3_LAYERS = dict(hivit=2, fastitpn=3)  # SwiGLU has a gate
PYRAMID_RATIO = 4


def sum_of_means(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """A loss that reaches all values of all maps."""
    return sum(x.float().square().mean() for x in maps)


def count_gflop(model: nn.Module, shape: Sequence[int], train: bool = False) -> float:
    """GFLOP of a pass of a model on device ``meta``, as torch counts them.

    Args:
        model: The model.
        shape: Shape of the images.
        train: Forward and backward, not forward alone.
    """
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(train), counter:
        maps = model(torch.empty(shape, device='meta'))
        if train:
            sum_of_means(maps).backward()
    return counter.get_total_flops() / 1e9


def counted(candidate: Candidate, size: tuple[int, int], train: bool = False) -> float:
    """GFLOP for one image by torch's counter; nothing is allocated or computed."""
    return count_gflop(skeleton(candidate, size), (1, 3, *size), train)


def cut(length: int, longest: int) -> list[int]:
    """Lengths of the fewest even parts of at most ``longest``."""
    parts = -(-length // longest)
    return [(i + 1) * length // parts - i * length // parts for i in range(parts)]


def window_lengths(setting: dict, grid: tuple[int, int], depth: int) -> list[list[int]]:
    """Tokens of every window in each layer of stage 3 (``depth`` lists).

    A window starts with its patches. At the j-th of M layers where tokens leave, R_j = R j / M
    (rounded) of its n slots are gone, of which those that it never had leave first; R is the ratio
    of n, rounded down.
    """
    default = inspect.signature(TokenMigration).parameters
    given = {
        name: setting.get(name, default[name].default)
        for name in ('ratio', 'schedule', 'window_size')
    }
    ((kind, value),) = given['schedule'].items()
    steps = dict(every=lambda: range(0, depth, value), first=lambda: range(value))
    layers = sorted(value) if kind == 'layers' else list(steps[kind]())
    rows, cols = (cut(side, given['window_size']) for side in grid)
    slots = max(rows) * max(cols)
    leaving = int(Fraction(str(given['ratio'])) * slots)
    windows = [row * col for row in rows for col in cols]
    lengths = []
    for layer in range(depth):
        if layer in layers:
            step = layers.index(layer) + 1
            gone = int(Fraction(leaving * step, len(layers)) + Fraction(1, 2))
            windows = [min(n, slots - gone) for n in windows]
        lengths.append(windows)
    return lengths


def _mlp(tokens: int, width: int, ratio: int, layers: int = 2) -> int:
    return tokens * layers * width * width * ratio


def _stem(patches: int, widths: Sequence[int], depths: Sequence[int], ratio: int) -> int:
    fine, middle, coarse = widths
    total = 16 * patches * 48 * fine + depths[0] * _mlp(16 * patches, fine, ratio)
    total += 4 * patches * 4 * fine * middle + depths[1] * _mlp(4 * patches, middle, ratio)
    return total + patches * 4 * middle * coarse


def _pyramid(patches: int, widths: Sequence[int], depth: int) -> int:
    out = OUT_CHANNELS
    fine, middle, coarse = widths
    total = patches * (16 * fine + 4 * middle) * out  # laterals
    total += patches * coarse * out if coarse != out else 0
    total += patches * (coarse + 4 * out) * 4 * out  # splits
    blocks = (16 + 4) * depth + 16 + 4 + 1
    return total + _mlp(blocks * patches, out, PYRAMID_RATIO)


def _stage_3(setting: dict, grid: tuple[int, int], arch: dict, family: str) -> int:
    """Products of stage 3, without a class token, which the models of the benchmark do not have."""
    width, depth, heads = arch['embed_dims'], arch['depths'][2], arch['num_heads']
    in_windows = setting.get('window_attention', False)
    total, before = 0, window_lengths({**setting, 'ratio': 0.0}, grid, 1)[0]
    gathering = len(before) if setting.get('gathering') else 0
    for layer, after in enumerate(window_lengths(setting, grid, depth)):
        if after != before:  # keys of a head, and each of a half with each of the other
            per_head = width // heads
            total += sum(before) * width * per_head
            changed = [n for n, left in zip(before, after) if left != n]
            total += sum((n + 1) // 2 * (n // 2) for n in changed) * per_head
        tokens = sum(after)
        rows = tokens + gathering
        total += rows * 4 * width * width
        total += _mlp(rows, width, RATIOS[family][1], STAGE_3_LAYERS[family])
        own = 1 if gathering else 0
        if in_windows and layer not in setting.get('global_layers', ()):
            pairs = sum((n + own) * n for n in after) + rows * gathering
        else:
            pairs = rows * tokens
        total += 2 * pairs * width
        before = after
    return total


def closed_form(candidate: Candidate, size: tuple[int, int]) -> float:
    """GFLOP of a forward pass of one of our models for one image, two for a multiplication."""
    family, arch = candidate.model.split('-')[0], MODELS[candidate.model]
    setting = arguments_of('dense' if candidate.variant == 'plain' else candidate.variant)
    grid = (size[0] // 16, size[1] // 16)
    patches = grid[0] * grid[1]
    widths = [arch['embed_dims'] // i for i in (4, 2, 1)]
    total = _stem(patches, widths, arch['depths'], RATIOS[family][0])
    total += _stage_3(setting, grid, arch, family)
    if candidate.pyramid:
        total += _pyramid(patches, widths, PYRAMIDS[family]['depth'])
    return 2 * total / 1e9
