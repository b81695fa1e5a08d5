"""Fluorescence nuclei with instance masks as COCO tiles, split by region of the one picture."""

import json
from pathlib import Path

import numpy as np

from .archives import ARCHIVES, ArchiveReader
from .coco import add_image, tile_annotations
from .pictures import Region, as_rgb, read_picture, save_png, tile_regions

PACKAGE = 'stardist'
PICTURE = 'stardist/data/images/img2d.tif'  # 512x512, 16 bit, one channel, values 0 to 235
LABELS = 'stardist/data/images/mask2d.tif'  # 512x512, 16 bit, 125 instances

TILE = 128
# Region and stride. A nucleus on the border at x = 384 is cut there: each side has its own pixels.
SPLITS = {
    'train': (Region(0, 0, 384, 512), 32),
    'val': (Region(384, 0, 512, 512), TILE),
}
MIN_AREA = 44  # a tenth of a typical nucleus (median 440 pixels): less is a sliver without a shape
NORMALISATION = (
    '16-bit values, 1st to 99th percentile of the training region stretched to 0..255, '
    'clipped, three equal channels'
)


def read_nuclei(reader: ArchiveReader) -> np.ndarray:
    """The whole picture as RGB (512, 512, 3) uint8.

    The range is taken from the training region alone: nothing of the held-out one enters it.
    """
    picture = read_picture(reader, PACKAGE, PICTURE).astype(np.float64)
    low, high = np.percentile(SPLITS['train'][0].crop(picture), (1, 99))
    scaled = (picture - low) / (high - low) * 255
    return as_rgb(np.rint(scaled.clip(0, 255)).astype(np.uint8))


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `train/`, `val/` and `annotations/{train,val}.json`.

    Returns counts by split, and what was made of each (package, member).
    """
    picture = read_nuclei(reader)
    labels = read_picture(reader, PACKAGE, LABELS).astype(np.int64)
    counts = {}
    for split, (region, stride) in SPLITS.items():
        document = coco_document(split)
        for tile in tile_regions(region, TILE, stride):
            name = f'nuclei_y{tile.top:03d}_x{tile.left:03d}.png'
            save_png(folder / split / name, tile.crop(picture))
            add_image(document, name, tile, tile_annotations(labels, tile, MIN_AREA))
        path = folder / 'annotations' / f'{split}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
        counts[f'{split}_images'] = len(document['images'])
        counts[f'{split}_instances'] = len(document['annotations'])
    made = f'{counts["train_images"]} train and {counts["val_images"]} val tiles'
    return counts, {(PACKAGE, PICTURE): made, (PACKAGE, LABELS): 'their masks and boxes'}


def coco_document(split: str) -> dict:
    """A COCO document with everything but images and annotations."""
    archive, (region, stride) = ARCHIVES[PACKAGE], SPLITS[split]
    return {
        'info': {
            'description': f'nuclei, {split}: {TILE}-pixel tiles at stride {stride} of the region '
            f'(left, top, right, bottom) {tuple(region)}',
            'source': f'{archive.package} {archive.version}, {PICTURE} and {LABELS}',
            'normalisation': NORMALISATION,
            'min_area': MIN_AREA,
        },
        'licenses': [
            {
                'id': 1,
                'name': archive.licence,
                'url': f'https://pypi.org/project/{archive.package}/{archive.version}/',
            }
        ],
        'categories': [{'id': 1, 'name': 'nucleus'}],
        'images': [],
        'annotations': [],
    }
