"""Checks of arguments that several classes take, given by name: `check_sizes(depth=depth)`.

Each raises a ValueError that names the argument, its value and what would be right.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def are_sizes(values: object) -> bool:
    """Whether this is a sequence of whole numbers of at least 1."""
    return isinstance(values, Sequence) and all(is_whole(n) and n > 0 for n in values)


def is_whole(value: object) -> bool:
    """Whether this is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether this is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def check_sizes(**values: Any) -> None:
    """Whole numbers of at least 1."""
    _check(values, lambda value: is_whole(value) and value > 0, 'a number of at least 1')


def check_counts(**values: Any) -> None:
    """Whole numbers of at least 0."""
    _check(values, lambda value: is_whole(value) and value >= 0, 'a number of at least 0')


def check_positive(**values: Any) -> None:
    """Numbers above 0."""
    _check(values, lambda value: is_number(value) and value > 0, 'a number above 0')


def check_numbers(**values: Any) -> None:
    """Finite numbers."""
    _check(values, is_number, 'a number')


def check_rates(**values: Any) -> None:
    """Shares that leave something: dropout, stochastic depth."""
    _check(values, lambda value: is_number(value) and 0 <= value < 1, 'in [0, 1)')


def check_flags(**values: Any) -> None:
    """True or False; `'False'` is true for Python."""
    _check(values, lambda value: isinstance(value, bool), 'True or False')


def _check(values: Mapping[str, Any], fits: Callable[[Any], bool], wanted: str) -> None:
    for name, value in values.items():
        if not fits(value):
            raise ValueError(f'`{name}` must be {wanted}, but got {value!r}')
