"""Batches of images of several sizes, padded on the right and below: what is image, what is not.

A batch is described by its `ratios` (B, 2): width and height of each image as fractions of those of
the padded batch; `None` where nothing is padded. Boxes are fractions of the image, so that they do
not depend on what it is batched with; a box times its ratios is a fraction of the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # height, width

# A part of a cell that is image only by rounding does not make it one.
_ROUNDING = 1e-5


def find_ratios(sizes: Sequence[Size], batch_size: Size, device: torch.device) -> Tensor | None:
    """Return the ratios (B, 2) of images of `sizes` in a batch padded to `batch_size`.

    Raises:
        ValueError: An image is larger than the batch.
    """
    height, width = batch_size
    for size in sizes:
        if size[0] > height or size[1] > width:
            raise ValueError(
                f'`img_shape` is {tuple(size[:2])}, larger than the batch, {(height, width)}; '
                'height comes first'
            )
    if all(tuple(size[:2]) == (height, width) for size in sizes):
        return None
    fractions = [(size[1] / width, size[0] / height) for size in sizes]
    return torch.tensor(fractions, dtype=torch.float32, device=device)


def find_image(ratios: Tensor, size: Size) -> Tensor:
    """Return (B, H, W), true for the cells of maps of `size` that hold a part of the image."""
    columns, rows = (
        torch.arange(count, device=ratios.device) / count < ratios[:, axis, None] - _ROUNDING
        for axis, count in ((0, size[1]), (1, size[0]))
    )
    return rows[:, :, None] & columns[:, None, :]


def extend_image(maps: Tensor, image: Tensor) -> Tensor:
    """Repeat the last row and column of the image over the padding, as resizing expects.

    Args:
        maps: (B, C, H, W).
        image: (B, H, W), of :func:`find_image`.
    """
    for axis, inside in ((2, image.any(2)), (3, image.any(1))):  # rows, columns
        index = torch.arange(maps.shape[axis], device=maps.device)
        index = torch.minimum(index, inside.sum(1, keepdim=True) - 1)
        index = index[:, None, :, None] if axis == 2 else index[:, None, None, :]
        maps = maps.gather(axis, index.expand_as(maps))
    return maps


class PaddedGroupNorm(nn.GroupNorm):
    """Group normalisation with the statistics of the image, padding left out and set to 0."""

    def forward(self, maps: Tensor, image: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same; `image` (B, H, W) is true inside, `None` for everywhere."""
        if image is None:
            return super().forward(maps)
        inside = image[:, None, None].to(maps.dtype)
        groups = maps.unflatten(1, (self.num_groups, -1))
        count = inside.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * inside).sum((2, 3, 4), keepdim=True) / count
        centred = groups - mean
        variance = (centred.square() * inside).sum((2, 3, 4), keepdim=True) / count
        normed = (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)
        normed = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return normed * image[:, None]
