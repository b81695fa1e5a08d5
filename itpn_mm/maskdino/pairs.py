"""Pairs of a query and the object that it is to find."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """P pairs.

    Args:
        images: (P,), the image in the batch.
        queries: (P,), the query of the image.
        objects: (P,), the object, counted over the whole batch.
        sets: (P,), the set of predictions; `None` where pairs hold for all of them.
    """

    images: Tensor
    queries: Tensor
    objects: Tensor
    sets: Tensor | None = None

    def of_sets(self, count: int) -> 'Pairs':
        """The same pairs for each of `count` sets."""
        sets = torch.arange(count, device=self.images.device).repeat_interleave(len(self.images))
        repeated = (t.repeat(count) for t in (self.images, self.queries, self.objects))
        return Pairs(*repeated, sets)

    @staticmethod
    def cat(pairs: Sequence['Pairs']) -> 'Pairs':
        """Join pairs of several images."""
        fields = Pairs.__dataclass_fields__
        return Pairs(*(torch.cat([getattr(p, field) for p in pairs]) for field in fields))

    def to(self, device: torch.device) -> 'Pairs':
        """Move all fields."""
        return Pairs(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.images)
