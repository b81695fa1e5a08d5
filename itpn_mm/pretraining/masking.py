"""Which patches the model may see."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from itpn_mm.layers.arguments import is_number
from itpn_mm.registry import MODELS


class PatchMask(NamedTuple):
    """Partition of the L patches of each image; indices are row-major over the grid.

    Attributes:
        keep: Visible patches (B, V).
        masked: Masked patches (B, M), M = L - V.
    """

    keep: Tensor
    masked: Tensor

    @classmethod
    def from_noise(cls, noise: Tensor, num_keep: int) -> 'PatchMask':
        """Keep the ``num_keep`` patches of least noise (B, L), as MAE."""
        order = noise.argsort(dim=1)
        return cls(order[:, :num_keep], order[:, num_keep:])

    def as_bool(self) -> Tensor:
        """Mask (B, L), True where masked."""
        mask = self.keep.new_ones(
            self.keep.shape[0], self.keep.shape[1] + self.masked.shape[1], dtype=torch.bool
        )
        return mask.scatter_(1, self.keep, False)


@MODELS.register_module()
class RandomMasking:
    """Mask a share of the patches of each image, drawn uniformly (Section 5.1; MAE).

    Args:
        ratio: Share of masked patches. Raises ValueError unless in (0, 1).
    """

    def __init__(self, ratio: float = 0.75) -> None:
        if not is_number(ratio) or not 0 < ratio < 1:
            raise ValueError(f'`ratio` of RandomMasking must be in (0, 1), but got {ratio!r}')
        self.ratio = ratio

    def __call__(self, batch_size: int, num_patches: int, device: torch.device) -> PatchMask:
        """Draw a mask for each of B images of L patches; floor(L * (1 - ratio)) stay visible.

        Raises:
            ValueError: No patch would stay visible.
        """
        # 25 * (1 - 0.8) is a hair below 5.
        num_keep = math.floor(num_patches * (1 - self.ratio) + 1e-6)
        if num_keep == 0:
            raise ValueError(
                f'masking {self.ratio} of {num_patches} patches leaves none visible: '
                'use larger images or a smaller `masking.ratio`'
            )
        return PatchMask.from_noise(torch.rand(batch_size, num_patches, device=device), num_keep)
