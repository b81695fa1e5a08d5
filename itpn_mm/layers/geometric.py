"""Resampling of relative positions that stand in geometric progression (BEiT's fine-tuning).

A table of n = 2w - 1 differences is taken to hold the differences 0, 1, 1 + q, 1 + q + q^2, ... in
either direction, with q such that the last one is that of the larger window. A cubic spline through
them is read at whole differences. It is linear in the table, so it is one matrix per axis.
"""

from functools import cache

import torch
from torch import Tensor, nn

# The ratio that the Fast-iTPN release writes down for its one-dimensional tables.
DECOUPLED_RATIO = 1.0903078
_RATIOS = (1.01, 1.5)


def resize_matrix(src: int, dst: int, ratio: float | None = None) -> Tensor:
    """Matrix (dst, src) from a table of ``src`` differences to one of ``dst``; both are odd.

    Args:
        src: Number of differences in the table.
        dst: Number of differences wanted.
        ratio: Ratio q of the progression. The spline goes on beyond the last difference of the
            table. ``None``: q is chosen so that it reaches as far as the wanted table, and what
            little is beyond has the value of the last.
    """
    if src == 1:  # of a grid of one row: what is known of difference 0 is all there is
        return torch.ones(dst, 1, dtype=torch.float64)
    clamp = ratio is None
    return _spline_matrix(src, dst, _find_ratio(src, dst) if clamp else ratio, clamp)


def _find_ratio(src: int, dst: int) -> float:
    """Ratio q in [1.01, 1.5] at which ``src`` differences reach as far as ``dst`` whole ones."""
    low, high = _RATIOS
    q = low
    while high - low > 1e-6:
        q = (low + high) / 2
        reach = (1 - q ** (src // 2)) / (1 - q)
        low, high = (low, q) if reach > dst // 2 else (q, high)
    return q


@cache
def _spline_matrix(src: int, dst: int, ratio: float, clamp: bool) -> Tensor:
    from scipy.interpolate import CubicSpline  # only this needs SciPy

    steps = torch.tensor([ratio**i for i in range(src // 2)], dtype=torch.float64).cumsum(0)
    known = torch.cat([-steps.flip(0), steps.new_zeros(1), steps]).numpy()
    wanted = torch.arange(-(dst // 2), dst // 2 + 1, dtype=torch.float64).numpy()
    if clamp:
        wanted = wanted.clip(known[0], known[-1])
    spline = CubicSpline(known, torch.eye(src, dtype=torch.float64).numpy())
    # As a parameter, for torch.compile takes the shape of other constants of one name for dynamic.
    return nn.Parameter(torch.from_numpy(spline(wanted)), requires_grad=False)


# For torch.compile a matrix is a constant; it need not look into SciPy.
torch.compiler.assume_constant_result(resize_matrix)
