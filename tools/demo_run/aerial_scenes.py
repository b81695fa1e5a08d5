"""The held-out photograph, the trees in it, and what a detector found: tile by tile and whole."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from .pictures import match_surest

NMS = 0.3  # IoU from which two finds of overlapping patches are one tree


@dataclass
class Scene:
    """A picture with boxes as corners (4, 2) in its pixels.

    Args:
        name: Of the tile or photograph.
        picture: (H, W, 3) uint8.
        left, top: Where it lies in the photograph.
        trees: The ground truth.
        found: Predictions with their scores.
    """

    name: str
    picture: np.ndarray
    left: int = 0
    top: int = 0
    trees: list[np.ndarray] = field(default_factory=list)
    found: list[tuple[np.ndarray, float]] = field(default_factory=list)


def read_tiles(data: Path, predictions: Path, threshold: float, oriented: bool) -> list[Scene]:
    """The held-out tiles with their trees, and the predictions of at least a score.

    Args:
        data: Folder of the data set.
        predictions: `.bbox.json` that the evaluation wrote.
        threshold: Least score.
        oriented: Whether the data set is in DOTA's format and not in COCO's.
    """
    tiles = read_dota(data / 'val') if oriented else read_coco(data)
    for item in json.loads(predictions.read_text()):
        if item['score'] >= threshold:
            corners = rotated_corners(item['bbox']) if oriented else upright_corners(item['bbox'])
            tiles[item['image_id']].found.append((corners, item['score']))
    return list(tiles.values())


def read_coco(data: Path) -> dict[int, Scene]:
    """The tiles of a data set in COCO's format by their ids."""
    document = json.loads((data / 'annotations/val.json').read_text())
    trees = defaultdict(list)
    for item in document['annotations']:
        trees[item['image_id']].append(upright_corners(item['bbox']))
    return {
        image['id']: Scene(
            image['file_name'],
            read_picture(data / 'val' / image['file_name']),
            *image['region'][:2],
            trees[image['id']],
        )
        for image in document['images']
    }


def read_dota(folder: Path) -> dict[str, Scene]:
    """The patches of a split in DOTA's format by their names, which say where they lie."""
    tiles = {}
    for path in sorted((folder / 'images').glob('*.png')):
        before, _, top = path.stem.rpartition('___')  # <photograph>__<size>__<left>___<top>
        left = before.rpartition('__')[2]
        trees = read_corners(folder / 'annfiles' / f'{path.stem}.txt')
        tiles[path.stem] = Scene(path.name, read_picture(path), int(left), int(top), trees)
    return tiles


def read_corners(path: Path) -> list[np.ndarray]:
    """Boxes of a file of DOTA, with or without its header."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [np.array(words[:8], float).reshape(4, 2) for words in lines if len(words) == 10]


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert('RGB'))


def upright_corners(box: Iterable[float]) -> np.ndarray:
    """Corners of a box left, top, width, height."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def rotated_corners(box: Iterable[float]) -> np.ndarray:
    """Corners of a box x, y of the centre, width, height, angle (radians, clockwise as seen)."""
    x, y, width, height, angle = box
    along = np.array([np.cos(angle), np.sin(angle)]) * width / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * height / 2
    steps = [-along - across, along - across, along + across, across - along]
    return np.array([x, y]) + steps


def stitch(tiles: list[Scene], trees: list[np.ndarray] | None = None) -> Scene:
    """The whole photograph.

    Args:
        tiles: All of them; where they overlap, finds of the same tree become one.
        trees: The ground truth of the photograph; if None, the tiles do not overlap and theirs is.
    """
    width = max(tile.left + tile.picture.shape[1] for tile in tiles)
    height = max(tile.top + tile.picture.shape[0] for tile in tiles)
    whole = Scene('the held-out photograph', np.zeros((height, width, 3), np.uint8))
    for tile in tiles:
        h, w = tile.picture.shape[:2]
        whole.picture[tile.top : tile.top + h, tile.left : tile.left + w] = tile.picture
        corner = (tile.left, tile.top)
        whole.trees += [tree + corner for tree in tile.trees if trees is None]
        whole.found += [(box + corner, score) for box, score in tile.found]
    if trees is not None:
        whole.trees, whole.found = list(trees), suppress(whole.found)
    return whole


def suppress(found: list[tuple[np.ndarray, float]]) -> list[tuple[np.ndarray, float]]:
    """The surest of all finds that overlap by `NMS` or more."""
    found = sorted(found, key=lambda item: -item[1])
    ious = box_ious([box for box, _ in found], [box for box, _ in found])
    kept: list[int] = []
    for i in range(len(found)):
        if not (ious[i, kept] >= NMS).any():
            kept.append(i)
    return [found[i] for i in kept]


def box_ious(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """IoU (N, M) of boxes given as corners."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    rows, columns = shapely.polygons(np.stack(first))[:, None], shapely.polygons(np.stack(second))
    shared = shapely.area(shapely.intersection(rows, columns))
    return shared / (shapely.area(rows) + shapely.area(columns) - shared)


def match(scene: Scene) -> dict[int, int]:
    """Index of the tree of each find that has one, at an IoU of at least `MATCH`.

    The surest find chooses first, as in COCO's evaluation.
    """
    return match_surest(
        [score for _, score in scene.found],
        box_ious([box for box, _ in scene.found], scene.trees),
    )
