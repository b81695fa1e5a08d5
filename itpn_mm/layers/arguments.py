"""Checks of arguments that several classes take."""

from collections.abc import Sequence


def are_sizes(values: object) -> bool:
    """Whether this is a sequence of whole numbers of at least 1."""
    return isinstance(values, Sequence) and all(isinstance(n, int) and n > 0 for n in values)
