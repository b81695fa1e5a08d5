"""Values of several seeds: mean, deviation, and how they are written."""

import statistics
from collections.abc import Mapping, Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def describe(values: Sequence[float]) -> dict:
    """Values with their mean and sample standard deviation."""
    mean, deviation = mean_and_deviation(values)
    rounded = [round(value, 2) for value in values]
    return {'values': rounded, 'mean': round(mean, 2), 'std': round(deviation, 2)}


def figure(cell: Mapping, sign: str = '') -> str:
    """What `describe` gives, as `mean ± std`, or the value if it is a single one."""
    mean = f'{round(cell["mean"], 1) + 0.0:{sign}.1f}'
    return f'{mean} ± {cell["std"]:.1f}' if len(cell['values']) > 1 else mean


def spread_of(seeds: Sequence[int]) -> str:
    """How a note under a table says of what the cells are."""
    if len(seeds) == 1:
        return 'one seed'
    return f'mean ± standard deviation of {len(seeds)} seeds'
