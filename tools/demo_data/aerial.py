"""Aerial photographs with a box for each tree as COCO tiles; one photograph is held out."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .archives import ARCHIVES, ArchiveReader
from .coco import add_image
from .pictures import (
    Region,
    as_rgb,
    covering_tiles,
    overlapping_tiles,
    read_picture,
    reduce,
    save_png,
)

PACKAGE = 'deepforest'
FOLDER = 'deepforest/data/'
# Photographs of a split by a short name; beside each lies an .xml with its boxes. The one that is
# held out is not in the pool for pre-training either.
PHOTOGRAPHS = {
    'train': {
        'osbs': 'OSBS_029',
        'soap': 'SOAP_061',
        'yell': '2019_YELL_2_541000_4977000_image_crop',
    },
    'val': {'held_out': '2019_YELL_2_528000_4978000_image_crop2'},
}
CLASS = 'tree'  # one photograph tells dead ones from those alive

FACTOR = 2  # of reduction: the median tree is 40 pixels high, of 0.1 m
TILE = 128
STRIDE = 32  # in training; tiles of the held-out photograph do not overlap
# A tile has a box of what it shows of a tree, unless that is less than this share of the tree: the
# rest is a sliver that nobody could tell to be a tree.
MIN_SHARE = 0.25


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `train/`, `val/` and `annotations/{train,val}.json`.

    Returns counts by split, and what was made of each (package, member).
    """
    counts, made = {}, {}
    for split, photographs in PHOTOGRAPHS.items():
        document, trees = coco_document(split), 0
        for name, stem in photographs.items():
            picture, boxes = read_photograph(reader, stem)
            trees += len(boxes)
            tiles = tiles_of(picture, split)
            for tile in tiles:
                file = f'{name}_y{tile.top:04d}_x{tile.left:04d}.png'
                save_png(folder / split / file, tile.crop(picture))
                add_image(document, file, tile, tile_boxes(boxes, tile))
            made[PACKAGE, member(stem, 'png')] = f'{len(tiles)} {split} tiles'
            made[PACKAGE, member(stem, 'xml')] = 'their boxes'
        path = folder / 'annotations' / f'{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
        counts[f'{split}_trees'] = trees
        counts[f'{split}_images'] = len(document['images'])
        counts[f'{split}_instances'] = len(document['annotations'])
    return counts, made


def read_photograph(reader: ArchiveReader, stem: str) -> tuple[np.ndarray, np.ndarray]:
    """A photograph reduced by `FACTOR`, (H, W, 3) uint8, and the boxes (N, 4) of its trees.

    Boxes are left, top, right, bottom in pixels, measured from the corner of the photograph.
    """
    picture = reduce(as_rgb(read_picture(reader, PACKAGE, member(stem, 'png'))), FACTOR)
    boxes = read_boxes(reader.read(PACKAGE, member(stem, 'xml'))) / FACTOR
    height, width = picture.shape[:2]  # an odd last row or column is gone
    return picture, boxes.clip(0, (width, height, width, height))


def read_boxes(xml: bytes) -> np.ndarray:
    """Boxes (N, 4) of a file of PASCAL VOC, whose pixels are numbered from 1, both ends inside."""
    found = [
        [float(box.findtext(name)) for name in ('xmin', 'ymin', 'xmax', 'ymax')]
        for box in ElementTree.fromstring(xml).iter('bndbox')
    ]
    return np.array(found).reshape(-1, 4) - (1, 1, 0, 0)


def member(stem: str, extension: str) -> str:
    """Path of a photograph or of its boxes in the package."""
    return f'{FOLDER}{stem}.{extension}'


def tiles_of(picture: np.ndarray, split: str) -> list[Region]:
    """Tiles of a photograph; all of it is in one of them."""
    whole = Region(0, 0, picture.shape[1], picture.shape[0])
    if split == 'train':
        return overlapping_tiles(whole, TILE, STRIDE)
    return covering_tiles(whole, TILE)  # a few pixels smaller


def tile_boxes(boxes: np.ndarray, tile: Region) -> list[dict]:
    """COCO annotations, without ids, of what a tile shows of the trees.

    Args:
        boxes: (N, 4) of the photograph.
        tile: Boxes are clipped at its borders and relative to its corner.
    """
    left, top, right, bottom = tile
    clipped = boxes.clip((left, top, left, top), (right, bottom, right, bottom))
    annotations = []
    for number, (box, shown) in enumerate(zip(boxes, clipped), start=1):
        width, height = (shown[2:] - shown[:2]).tolist()
        share = width * height / np.prod(box[2:] - box[:2])
        if share < MIN_SHARE:
            continue
        x, y = (shown[:2] - (left, top)).tolist()
        annotations.append(
            {
                'category_id': 1,
                'bbox': [x, y, width, height],
                'area': width * height,
                'iscrowd': 0,
                'instance': number,
            }
        )
    return annotations


def coco_document(split: str) -> dict:
    """A COCO document with everything but images and annotations."""
    archive = ARCHIVES[PACKAGE]
    members = [member(stem, 'png') for stem in PHOTOGRAPHS[split].values()]
    return {
        'info': {
            'description': f'trees, {split}: {TILE}-pixel tiles of photographs reduced by {FACTOR}',
            'source': f'{archive.package} {archive.version}, {", ".join(members)}',
            'min_share': MIN_SHARE,
        },
        'licenses': [
            {
                'id': 1,
                'name': archive.licence,
                'url': f'https://pypi.org/project/{archive.package}/{archive.version}/',
            }
        ],
        'categories': [{'id': 1, 'name': CLASS}],
        'images': [],
        'annotations': [],
    }
