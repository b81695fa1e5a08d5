"""The tiles of `nuclei` with a class for each pixel, laid out on disk as ADE20K is."""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from .archives import ArchiveReader
from .nuclei import LABELS, PACKAGE, PICTURE, SPLITS, TILE, read_nuclei
from .pictures import Region, read_picture, save_png, tile_regions

FOLDERS = {'train': 'training', 'val': 'validation'}  # ADE20K's names of the splits
# In a file, 0 is a pixel without a class and the first class is 1 (mmseg's `reduce_zero_label`).
UNLABELLED, BACKGROUND, INTERIOR, BORDER = range(4)
CLASSES = ('background', 'interior', 'border')
# Pixels of the band inside a nucleus along its outline. Where two nuclei touch, each has its own.
BORDER_WIDTH = 3


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `images/` and `annotations/`, each with `training/` and `validation/`.

    Returns counts by split, and what was made of each (package, member).
    """
    picture = read_nuclei(reader)
    nuclei = read_picture(reader, PACKAGE, LABELS).astype(np.int64)
    counts = {}
    for split, (region, stride) in SPLITS.items():
        classes = class_map(region.crop(nuclei))
        tiles = tile_regions(region, TILE, stride)
        for tile in tiles:
            name = f'{FOLDERS[split]}/nuclei_y{tile.top:03d}_x{tile.left:03d}.png'
            save_png(folder / 'images' / name, tile.crop(picture))
            inside = Region(
                tile.left - region.left,
                tile.top - region.top,
                tile.right - region.left,
                tile.bottom - region.top,
            )
            save_labels(folder / 'annotations' / name, inside.crop(classes))
        counts[f'{split}_images'] = len(tiles)
        for value, class_name in enumerate(CLASSES, start=1):
            counts[f'{split}_{class_name}'] = f'{(classes == value).mean():.1%}'
    made = f'{counts["train_images"]} training and {counts["val_images"]} validation tiles'
    return counts, {(PACKAGE, PICTURE): made, (PACKAGE, LABELS): 'their classes'}


def class_map(nuclei: np.ndarray, width: int = BORDER_WIDTH) -> np.ndarray:
    """The class of each pixel of a region, which knows nothing of what lies around it.

    A pixel of a nucleus is border if background or another nucleus is at most `width` pixels away.
    It is unlabelled if the region shows nothing of the kind, but its sides are as near.

    Args:
        nuclei: (H, W) integers, 0 = background, one number a nucleus.
        width: Pixels of the band.

    Returns:
        (H, W) uint8 of `UNLABELLED`, `BACKGROUND`, `INTERIOR`, `BORDER`.
    """
    height, columns = nuclei.shape
    beyond = -1
    padded = np.pad(nuclei.astype(np.int64), width, constant_values=beyond)
    border, unknown = np.zeros((2, *nuclei.shape), bool)
    for dy, dx in product(range(-width, width + 1), repeat=2):
        if dy**2 + dx**2 > width**2:
            continue
        neighbour = padded[width + dy :, width + dx :][:height, :columns]
        unknown |= neighbour == beyond
        border |= (neighbour != nuclei) & (neighbour != beyond)
    return np.select(
        [nuclei == 0, border, unknown], [BACKGROUND, BORDER, UNLABELLED], INTERIOR
    ).astype(np.uint8)


def save_labels(path: Path, labels: np.ndarray) -> None:
    """Write (H, W) uint8 as a grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
