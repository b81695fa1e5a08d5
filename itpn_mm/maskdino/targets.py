"""What a batch should be segmented into."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import boxes_from_masks


@dataclass(frozen=True)
class Target:
    """The n objects (or regions of a class) of an image.

    Args:
        labels: (n,).
        boxes: (n, 4), centre and size as fractions of the image.
        masks: (n, H, W) of bool, the image without padding.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor

    @classmethod
    def from_masks(cls, labels: Tensor, masks: Tensor) -> 'Target':
        """Boxes are tight around the masks; an object without a pixel left is left out."""
        kept = masks.flatten(1).any(1)
        labels, masks = labels[kept], masks[kept]
        extent = torch.tensor(masks.shape[:0:-1], dtype=torch.float32, device=masks.device)
        return cls(labels, boxes_from_masks(masks, 'bitmask', extent), masks)

    def __len__(self) -> int:
        return len(self.labels)


def first_objects(targets: Sequence[Target]) -> list[int]:
    """Index of each image's first object among those of the whole batch."""
    starts = [0]
    for target in targets[:-1]:
        starts.append(starts[-1] + len(target))
    return starts
