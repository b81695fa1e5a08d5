"""Maps of several levels as one sequence of tokens, as deformable attention takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .padding import Size, find_image


@dataclass(frozen=True)
class LevelTokens:
    """The tokens of L maps, the finest first.

    Args:
        tokens: (B, N, C), N cells of all levels, row by row.
        sizes: Height and width of each level.
        ratios: (B, 2), see `itpn_mm.maskdino.padding`.
    """

    tokens: Tensor
    sizes: tuple[Size, ...]
    ratios: Tensor | None = None

    @classmethod
    def from_maps(cls, maps: Sequence[Tensor], ratios: Tensor | None = None) -> 'LevelTokens':
        """L maps (B, C, H, W), the finest first."""
        tokens = torch.cat([level.flatten(2).mT for level in maps], 1)
        return cls(tokens, tuple(tuple(level.shape[-2:]) for level in maps), ratios)

    def to_maps(self) -> list[Tensor]:
        """L maps (B, C, H, W), the finest first."""
        levels = self.tokens.mT.split([h * w for h, w in self.sizes], 2)
        return [level.unflatten(2, size) for level, size in zip(levels, self.sizes, strict=True)]

    @property
    def padding(self) -> Tensor | None:
        """(B, N), true for tokens of padding."""
        if self.ratios is None:
            return None
        return ~torch.cat([find_image(self.ratios, size).flatten(1) for size in self.sizes], 1)

    @property
    def centres(self) -> Tensor:
        """(N, 2), x and y of the cells' centres as fractions of the padded batch."""
        device = self.tokens.device
        levels = []
        for h, w in self.sizes:
            y, x = torch.meshgrid(
                (torch.arange(h, device=device) + 0.5) / h,
                (torch.arange(w, device=device) + 0.5) / w,
                indexing='ij',
            )
            levels.append(torch.stack((x, y), -1).flatten(0, 1))
        return torch.cat(levels)

    def attention_inputs(self) -> dict[str, Tensor]:
        """What mmcv's MultiScaleDeformableAttention wants to know about the levels."""
        sizes = torch.tensor(self.sizes, device=self.tokens.device)
        starts = sizes.prod(1).cumsum(0)
        return dict(
            spatial_shapes=sizes,
            level_start_index=torch.cat((starts.new_zeros(1), starts[:-1])),
            key_padding_mask=self.padding,
        )

    def boxes_on_levels(self, boxes: Tensor) -> Tensor:
        """Boxes (B, T, 4) as fractions of the image -> (B, T, L, 4) as fractions of the batch."""
        if self.ratios is not None:
            boxes = boxes * self.ratios.repeat(1, 2)[:, None]
        return boxes[:, :, None].expand(-1, -1, len(self.sizes), -1)
