"""Stands between a data loader and its dataset, to change how samples are made."""

from typing import Any


class DatasetProxy:
    """A dataset in place of another; all but its samples is read from that one, and set on it.

    So hooks that switch a pipeline or ask for the classes find what they look for.

    Args:
        dataset: A map-style dataset, or another proxy.
    """

    # A dataset's own way to load a whole batch would pass by `__getitem__`.
    __getitems__ = None

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, 'dataset', dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)

    def __reduce__(self) -> tuple:
        return type(self), (self.dataset,)
