"""Pictures of the demo of segmentation: classes and nuclei on the tiles; losses, mIoU and AP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .pictures import COLOURS, LINES, WRONG, draw_tile, finish_axes, match_masks
from .results import Records

# Of background (left as it is), interior and border; what is unlabelled has none.
CLASS_COLOURS = (None, '#00B386', '#F0E442')
OPACITY = 0.45
LEGEND = (
    'Green: inside of a nucleus. Yellow: its border. Last column: a colour for each nucleus found, '
    'at a score of at least {threshold}; red: a find that is none (mask IoU below 0.5).'
)


@dataclass
class Tile:
    """A held-out tile and what the models found in it.

    Args:
        name: Of its file.
        picture: (H, W, 3) uint8.
        truth: Label map (H, W) as in a file: 0 unlabelled, classes from 1.
        maps: Predicted ones by the name of the model.
        nuclei: COCO annotations of single nuclei.
        found: COCO results.
    """

    name: str
    picture: np.ndarray
    truth: np.ndarray
    maps: dict[str, np.ndarray]
    nuclei: list[dict]
    found: list[dict]


def draw_overlays(tiles: Sequence[Tile], instances: str, threshold: float, path: Path) -> None:
    """Draw a row a tile: the tile, its classes, those found by each model, the nuclei found.

    Args:
        tiles: All with the same models.
        instances: What is written above the nuclei found.
        threshold: Score that they have at least.
        path: PNG to write.
    """
    models = list(tiles[0].maps)
    columns = 3 + len(models)
    figure = Figure(figsize=(3.1 * columns, 3.35 * len(tiles) + 0.3), layout='constrained')
    grid = figure.subplots(len(tiles), columns, squeeze=False)
    for row, tile in zip(grid, tiles):
        draw_map(row[0], tile.picture, np.zeros_like(tile.truth))
        draw_map(row[1], tile.picture, tile.truth)
        for axes, model in zip(row[2:], models):
            draw_map(axes, tile.picture, tile.maps[model])
            wrong = (tile.maps[model] != tile.truth)[tile.truth > 0].mean()
            axes.set_title(f'{model}\n{wrong:.1%} of the pixels wrong', fontsize=10)
        row[0].set_title(f'{tile.name}\n', fontsize=10)
        row[1].set_title(f'truth\n{len(tile.nuclei)} nuclei', fontsize=10)
        draw_nuclei(row[-1], tile, instances)
    figure.supxlabel(LEGEND.format(threshold=threshold), fontsize=11)
    figure.savefig(path, dpi=80, bbox_inches='tight', pad_inches=0.1)


def draw_map(axes: Axes, picture: np.ndarray, labels: np.ndarray) -> None:
    """Draw a tile in the colours of its classes."""
    shown = picture / 255
    for value, colour in enumerate(CLASS_COLOURS, start=1):
        if colour is not None:
            where = labels == value
            shown[where] = (1 - OPACITY) * shown[where] + OPACITY * np.array(to_rgb(colour))
    axes.imshow(shown)
    axes.set_axis_off()


def draw_nuclei(axes: Axes, tile: Tile, label: str) -> None:
    """Draw the nuclei found in a tile."""
    matches = match_masks(tile.nuclei, tile.found)
    colours = [
        COLOURS[matches[i] % len(COLOURS)] if i in matches else WRONG
        for i in range(len(tile.found))
    ]
    draw_tile(axes, tile.picture, tile.found, colours, masks_only=True)
    missed, wrong = len(tile.nuclei) - len(matches), len(tile.found) - len(matches)
    axes.set_title(f'{label}\n{len(matches)} found, {missed} not, {wrong} wrong', fontsize=10)


@dataclass
class Curves:
    """What the trainings of a model logged.

    Args:
        runs: Iterations and validations of each seed, by start.
        metric: What validations measure, as it is shown.
        key: Its name in the records.
        scale: What makes percent of it.
        unit: What validations are counted in.
    """

    runs: Mapping[str, Sequence[tuple[Records, Records]]]
    metric: str
    key: str
    scale: float
    unit: str


def draw_curves(models: Mapping[str, Curves], path: Path) -> None:
    """Draw the losses of each model above, its validations below; a line a seed."""
    figure = Figure(figsize=(4.6 * len(models), 7.4), layout='constrained')
    grid = figure.subplots(2, len(models), squeeze=False)
    for above, below, (label, curves) in zip(*grid, models.items()):
        for colour, (start, seeds) in zip(LINES, curves.runs.items()):
            for i, (train, val) in enumerate(seeds):
                style = dict(color=colour, label=None if i else start, linewidth=1.4)
                above.plot([r['step'] for r in train], [r['loss'] for r in train], **style)
                values = [curves.scale * record[curves.key] for record in val]
                below.plot([r['step'] for r in val], values, marker='o', markersize=4, **style)
        finish_axes(above, f'{label}: loss', 'iteration')
        finish_axes(below, f'{curves.metric} on the held-out region, percent', curves.unit)
        below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.savefig(path, dpi=90, bbox_inches='tight', pad_inches=0.1)
