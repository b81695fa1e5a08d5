"""A pool of crops for pre-training, in ImageNet-folder layout: one folder a photograph."""

from pathlib import Path

import numpy as np

from . import nuclei
from .archives import ArchiveReader
from .pictures import Region, as_rgb, read_picture, reduce, save_png, tile_regions

CROP = 160  # leaves room for random crops of 128
MAX_CROPS_A_SIDE = 6  # so that a large photograph does not outweigh the others

# (package, folder of the members, {folder written: (member, reduction)}).
# Drawings, near-flat pictures and the second view of the stereo pair are left out. So is
# deepforest's largest photograph (2019_YELL_2_528000_4978000_image_crop2.png): it is held out for
# evaluation.
PHOTOGRAPHS = (
    (
        'scikit-image',
        'skimage/data/',
        {
            'astronaut': ('astronaut.png', 1),
            'brick': ('brick.png', 1),
            'camera': ('camera.png', 1),
            'cat': ('chelsea.png', 1),
            'coffee': ('coffee.png', 1),
            'coins': ('coins.png', 1),
            'galaxies': ('hubble_deep_field.jpg', 1),
            'grass': ('grass.png', 1),
            'gravel': ('gravel.png', 1),
            'immunohistochemistry': ('ihc.png', 1),
            'moon': ('moon.png', 1),
            'motorcycle': ('motorcycle_left.png', 1),
            'retina': ('retina.jpg', 2),  # 1411x1411 and smooth: at full size a crop shows little
            'rocket': ('rocket.jpg', 1),
        },
    ),
    (
        'scikit-learn',
        'sklearn/datasets/images/',
        {'flower': ('flower.jpg', 1), 'pagoda': ('china.jpg', 1)},
    ),
    ('stardist', 'stardist/data/images/', {'histology': ('histo.jpg', 1)}),
    (
        'deepforest',
        'deepforest/data/',
        {
            'aerial_osbs': ('OSBS_029.png', 1),
            'aerial_pelicans': ('AWPE Pigeon Lake 2020 DJI_0005.JPG', 1),
            'aerial_soap_031': ('SOAP_031.png', 1),
            'aerial_soap_061': ('SOAP_061.png', 1),
            'aerial_yell': ('2019_YELL_2_541000_4977000_image_crop.png', 1),
        },
    ),
)
# The demo fine-tunes on nuclei, so about a third of the pool is of their training region.
NUCLEI_STRIDE = 16


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `train/<photograph>/*.png`.

    Returns counts by folder, and what was made of each (package, member).
    """
    counts, made = {}, {}
    for package, parent, photographs in PHOTOGRAPHS:
        for name, (member, factor) in photographs.items():
            picture = reduce(as_rgb(read_picture(reader, package, parent + member)), factor)
            counts[name] = save_crops(folder / 'train', name, picture, spread_crops(picture))
            made[package, parent + member] = f'{counts[name]} crops in train/{name}'
    region = nuclei.SPLITS['train'][0]
    crops = tile_regions(region, CROP, NUCLEI_STRIDE)
    counts['nuclei'] = save_crops(folder / 'train', 'nuclei', nuclei.read_nuclei(reader), crops)
    made[nuclei.PACKAGE, nuclei.PICTURE] = (
        f'{counts["nuclei"]} crops of {tuple(region)} in train/nuclei'
    )
    return counts, made


def spread_crops(picture: np.ndarray) -> list[Region]:
    """Crops at even distances from border to border, overlapping by about a half."""
    tops, lefts = (spread_positions(side) for side in picture.shape[:2])
    return [Region(x, y, x + CROP, y + CROP) for y in tops for x in lefts]


def spread_positions(side: int) -> list[int]:
    """First pixels of the crops along one side of a picture."""
    if side < CROP:
        raise ValueError(f'`side` must be at least {CROP} pixels, got {side}')
    number = min(round((side - CROP) / (CROP / 2)) + 1, MAX_CROPS_A_SIDE)
    return np.linspace(0, side - CROP, number).astype(int).tolist()


def save_crops(folder: Path, name: str, picture: np.ndarray, crops: list[Region]) -> int:
    """Write each crop of `picture` into `folder/name` and return how many there are."""
    for crop in crops:
        file = f'{name}_y{crop.top:04d}_x{crop.left:04d}.png'
        save_png(folder / name / file, crop.crop(picture))
    return len(crops)
