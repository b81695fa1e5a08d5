"""The pictures of the study, split by region: one border of each picture is held out.

A fold lies on disk as the demo's data sets do, so that the demo's configs read it: a pool of crops
without labels, nuclei with classes and with masks, trees with boxes. Of nuclei and trees, the pool
has what lies outside the held-out border alone, and so has the range of values that nuclei are
stretched to.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from demo_data import aerial, nuclei, nuclei_semantic, photographs
from demo_data.archives import ArchiveReader, fetch_all
from demo_data.coco import add_image, tile_annotations
from demo_data.pictures import (
    Region,
    as_rgb,
    covering_tiles,
    overlapping_tiles,
    read_picture,
    reduce,
    save_png,
)

SIDES = ('right', 'left', 'bottom', 'top')  # fold k holds out the k-th
SHARE = 4  # a quarter of each picture is held out
TILE, STRIDE = 128, 32
CROP, POOL_STRIDE = 128, {'nuclei': 16, 'aerial': 48}
PACKAGES = ('stardist', 'scikit-image', 'scikit-learn', 'deepforest')
MIN_AREA = nuclei.MIN_AREA


def held_out(whole: Region, side: str) -> tuple[Region, Region]:
    """The part of a picture that is trained on, and the border that is held out."""
    left, top, right, bottom = whole
    width, height = (right - left) // SHARE, (bottom - top) // SHARE
    cut = {
        'right': (
            Region(left, top, right - width, bottom),
            Region(right - width, top, right, bottom),
        ),
        'left': (Region(left + width, top, right, bottom), Region(left, top, left + width, bottom)),
        'bottom': (
            Region(left, top, right, bottom - height),
            Region(left, bottom - height, right, bottom),
        ),
        'top': (Region(left, top + height, right, bottom), Region(left, top, right, top + height)),
    }
    return cut[side]


def prepare(root: Path, cache: Path) -> None:
    """Write all folds and the pool that they share under `root`, unless they are there."""
    reader = None
    for name, write in {'pool': write_pool, **{s: fold_writer(s) for s in SIDES}}.items():
        if (root / name / 'complete').exists():
            continue
        reader = reader or fetch_all(PACKAGES, cache)
        shutil.rmtree(root / name, ignore_errors=True)
        write(root / name, reader)
        (root / name / 'complete').touch()
        print(f'data: {root / name}', flush=True)


def fold_writer(side: str) -> Callable[[Path, ArchiveReader], None]:
    """The function that writes the fold that holds out `side`."""

    def write(folder: Path, reader: ArchiveReader) -> None:
        write_nuclei(folder, reader, side)
        write_trees(folder, reader, side)

    return write


def write_pool(folder: Path, reader: ArchiveReader) -> None:
    """Crops of the photographs that no task is about."""
    for package, parent, pictures in photographs.PHOTOGRAPHS:
        for name, (member, factor) in pictures.items():
            if name.startswith('aerial') and name != 'aerial_pelicans':
                continue
            picture = reduce(as_rgb(read_picture(reader, package, parent + member)), factor)
            photographs.save_crops(folder, name, picture, photographs.spread_crops(picture))


def write_nuclei(folder: Path, reader: ArchiveReader, side: str) -> None:
    """Tiles of the nuclei with classes and with masks, and crops without either."""
    values = read_picture(reader, nuclei.PACKAGE, nuclei.PICTURE).astype(np.float64)
    labels = read_picture(reader, nuclei.PACKAGE, nuclei.LABELS).astype(np.int64)
    regions = dict(zip(('train', 'val'), held_out(Region(0, 0, *values.shape[::-1]), side)))
    low, high = np.percentile(regions['train'].crop(values), (1, 99))
    picture = as_rgb(np.rint(((values - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8))
    for split, region in regions.items():
        document = {'categories': [{'id': 1, 'name': 'nucleus'}], 'images': [], 'annotations': []}
        classes = nuclei_semantic.class_map(region.crop(labels))
        for tile in overlapping_tiles(region, TILE, STRIDE if split == 'train' else TILE):
            name = f'nuclei_y{tile.top:03d}_x{tile.left:03d}.png'
            inside = Region(
                tile.left - region.left,
                tile.top - region.top,
                tile.right - region.left,
                tile.bottom - region.top,
            )
            save_png(folder / 'nuclei' / split / name, tile.crop(picture))
            nuclei_semantic.save_labels(
                folder / 'nuclei' / 'classes' / split / name, inside.crop(classes)
            )
            add_image(document, name, tile, tile_annotations(labels, tile, MIN_AREA))
        write_json(folder / 'nuclei' / f'{split}.json', document)
    crops = overlapping_tiles(regions['train'], CROP, POOL_STRIDE['nuclei'])
    photographs.save_crops(folder / 'pool', 'nuclei', picture, crops)


def write_trees(folder: Path, reader: ArchiveReader, side: str) -> None:
    """Tiles of the aerial photographs with boxes of trees, and crops without."""
    documents = {
        split: {'categories': [{'id': 1, 'name': 'tree'}], 'images': [], 'annotations': []}
        for split in ('train', 'val')
    }
    stems = {**aerial.PHOTOGRAPHS['train'], **aerial.PHOTOGRAPHS['val']}
    for name, stem in stems.items():
        picture, boxes = aerial.read_photograph(reader, stem)
        whole = Region(0, 0, picture.shape[1], picture.shape[0])
        regions = dict(zip(('train', 'val'), held_out(whole, side)))
        for split, region in regions.items():
            tiles = (
                overlapping_tiles(region, TILE, STRIDE)
                if split == 'train'
                else covering_tiles(region, TILE)
            )
            for tile in tiles:
                file = f'{name}_y{tile.top:04d}_x{tile.left:04d}.png'
                save_png(folder / 'trees' / split / file, tile.crop(picture))
                add_image(documents[split], file, tile, aerial.tile_boxes(boxes, tile))
        crops = overlapping_tiles(regions['train'], CROP, POOL_STRIDE['aerial'])
        photographs.save_crops(folder / 'pool', f'aerial_{name}', picture, crops)
    for split, document in documents.items():
        write_json(folder / 'trees' / f'{split}.json', document)


def write_json(path: Path, document: dict) -> None:
    """Write a document of COCO's form."""
    path.write_text(json.dumps(document))
