"""Means over seeds with 95 % confidence intervals, and differences of paired runs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t as student

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean and the half-width of its confidence interval, `nan` for fewer than two values."""

    mean: float
    half: float
    count: int

    @property
    def sure(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f'{self.mean:.1f}' if math.isnan(self.half) else f'{self.mean:.1f} ± {self.half:.1f}'

    def signed(self) -> str:
        """With its sign, for differences."""
        return f'{"+" if self.mean >= 0 else ""}{self}'


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's confidence interval of independent values."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, math.nan, count)
    variance = math.fsum((x - mean) ** 2 for x in values) / (count - 1)
    quantile = student.ppf(0.5 + CONFIDENCE / 2, count - 1)
    return Estimate(mean, float(quantile * math.sqrt(variance / count)), count)


def paired(values: dict[int, float], reference: dict[int, float]) -> Estimate | None:
    """Mean difference of runs with the same seed, that is with the same data and held-out part."""
    seeds = sorted(values.keys() & reference.keys())
    return estimate([values[s] - reference[s] for s in seeds]) if seeds else None
