"""Whether the parts of a pre-training model fit each other."""

from collections.abc import Iterable
from typing import Any


def check_fits(fits: Iterable[tuple[str, Any, str, Any]]) -> None:
    """Check (argument, its value, other argument, the value of that) for equal values.

    Raises:
        ValueError: Two values differ; the message names both arguments.
    """
    for name, value, other, expected in fits:
        if value != expected:
            raise ValueError(f'`{name}` must be equal to `{other}` = {expected}, but got {value}')
