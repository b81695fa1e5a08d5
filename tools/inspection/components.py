"""Feature maps as pictures: three principal components are red, green and blue.

What the colours mean depends on the directions and on the ranges of the components. Maps are given
together that share their channels: all pictures, and all levels of a pyramid. They get the same
directions, so a hue means the same features in all of them; levels differ in size by far, so each
has its own centre and range, which all pictures share. Stages of an encoder have channels of their
own, hence hues of their own.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLIPPED = 1.0  # percent at either end of a component's range


class Components(NamedTuple):
    """Which features of a level are which colours.

    Args:
        mean: Of the features (C,).
        directions: Of the components (C, 3).
        low: Values (3,) that are black.
        high: Values (3,) that are white.
    """

    mean: Tensor
    directions: Tensor
    low: np.ndarray
    high: np.ndarray


def fit(levels: Mapping[str, Sequence[Tensor]], grey: Sequence[Tensor]) -> dict[str, Components]:
    """Find the components of levels that share their C channels, at least 3.

    Every level has the same weight, and of these every picture. The sign of a component is
    arbitrary; it is chosen such that brighter places have more of it.

    Args:
        levels: Maps (C, h, w) of each picture by name of the level.
        grey: Brightness (H, W) of the pictures.
    """
    means, flat = {}, {}
    covariance = tendency = 0
    for name, maps in levels.items():
        wide = [x.flatten(1).double() for x in maps]  # (C, places)
        means[name] = torch.stack([x.mean(dim=1) for x in wide]).mean(dim=0)
        flat[name] = [x - means[name][:, None] for x in wide]
        own = sum(x @ x.t() / x.shape[1] for x in flat[name])
        size = own.trace().clamp(min=torch.finfo(own.dtype).tiny)
        covariance = covariance + own / size
        for x, y, light in zip(flat[name], maps, grey, strict=True):
            pooled = F.adaptive_avg_pool2d(light[None].double(), y.shape[1:]).flatten()
            tendency = tendency + x @ (pooled - pooled.mean()) / len(pooled) / size.sqrt()
    directions = torch.linalg.eigh(covariance).eigenvectors[:, -3:].flip(1)
    directions = torch.where(tendency @ directions < 0, -directions, directions)
    found = {}
    for name, wide in flat.items():
        values = torch.cat([directions.t() @ x for x in wide], dim=1).numpy()
        low, high = np.percentile(values, [CLIPPED, 100 - CLIPPED], axis=1)
        found[name] = Components(means[name], directions, low, high)
    return found


def to_rgb(x: Tensor, components: Components) -> np.ndarray:
    """A map (C, h, w) in colours of 0 to 1: (h, w, 3)."""
    centred = x.double() - components.mean[:, None, None]
    values = torch.einsum('chw,cn->hwn', centred, components.directions).numpy()
    span = np.maximum(components.high - components.low, np.finfo(np.float32).tiny)
    return ((values - components.low) / span).clip(0, 1)
