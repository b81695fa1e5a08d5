"""Pictures as arrays: decoding, regions, crop positions, writing."""

import io
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .archives import ArchiveReader


class Region(NamedTuple):
    """A rectangle of pixels: left and top inside, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """The part (bottom - top, right - left, ...) of a picture (H, W, ...)."""
        return picture[self.top : self.bottom, self.left : self.right]


def read_picture(reader: ArchiveReader, package: str, member: str) -> np.ndarray:
    """Decode a picture with the sample type that it is stored in: (H, W) or (H, W, C)."""
    return np.array(Image.open(io.BytesIO(reader.read(package, member))))


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (H, W, 3) uint8; a grey picture gets three equal channels."""
    if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)):
        raise ValueError(
            f'`picture` must be (H, W) or (H, W, 3) uint8, got {picture.shape} {picture.dtype}'
        )
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def tile_regions(region: Region, size: int, stride: int) -> list[Region]:
    """Square tiles on a regular grid, all of them inside `region`, row by row."""
    lefts = range(region.left, region.right - size + 1, stride)
    tops = range(region.top, region.bottom - size + 1, stride)
    if not lefts or not tops:
        raise ValueError(f'`size` {size} does not fit into the region {tuple(region)}')
    return [Region(x, y, x + size, y + size) for y in tops for x in lefts]


def reduce(picture: np.ndarray, factor: int) -> np.ndarray:
    """Mean over factor x factor pixels: (H, W, 3) -> (H // factor, W // factor, 3), both uint8."""
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def overlapping_tiles(region: Region, size: int, stride: int) -> list[Region]:
    """Square tiles at even distances, at most about `stride`, from border to border of `region`."""
    lefts, tops = (
        np.linspace(start, stop - size, -(-(stop - start - size) // stride) + 1).astype(int)
        for start, stop in ((region.left, region.right), (region.top, region.bottom))
    )
    return [Region(x, y, x + size, y + size) for y in tops.tolist() for x in lefts.tolist()]


def covering_tiles(region: Region, size: int) -> list[Region]:
    """Tiles of at most `size` pixels, as equal as can be, that cover `region` without overlap."""
    columns, rows = (
        np.linspace(start, stop, -(-(stop - start) // size) + 1).round().astype(int).tolist()
        for start, stop in ((region.left, region.right), (region.top, region.bottom))
    )
    return [
        Region(left, top, right, bottom)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
