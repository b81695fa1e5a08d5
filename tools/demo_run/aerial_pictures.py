"""Pictures of the demo on aerial photographs: trees and finds, losses and AP."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from .aerial_scenes import Scene, match
from .pictures import LINES, MATCH, WRONG, finish_axes
from .results import Records

TREE, MISSED = '#56B4E9', '#F0E442'
LEGEND = (
    f'Blue: found, at an IoU of at least {MATCH}. Yellow: a tree that was not found. Red: a find '
    'that is no tree. Finds have at least the score in brackets.'
)


def draw_tiles(rows: Mapping[str, Sequence[Scene]], path: Path) -> None:
    """Draw tiles with their trees above, and below what each detector found.

    Args:
        rows: The same tiles for each detector, with its finds; by what is written beside them.
        path: PNG to write.
    """
    first = next(iter(rows.values()))
    figure = Figure(figsize=(3 * len(first), 3.2 * (1 + len(rows))), layout='constrained')
    grid = figure.subplots(1 + len(rows), len(first), squeeze=False)
    for axes, scene in zip(grid[0], first):
        draw_scene(axes, scene, {TREE: scene.trees})
        axes.set_title(f'{len(scene.trees)} trees', fontsize=10)
    for panels, (label, scenes) in zip(grid[1:], rows.items()):
        for axes, scene in zip(panels, scenes):
            axes.set_title(draw_finds(axes, scene), fontsize=10)
        label_row(panels[0], label)
    label_row(grid[0][0], 'ground truth')
    figure.supxlabel(LEGEND, fontsize=10)
    figure.savefig(path, dpi=80, bbox_inches='tight', pad_inches=0.1)


def draw_whole(scenes: Mapping[str, Scene], path: Path) -> None:
    """Draw what each detector found in the whole photograph."""
    figure = Figure(figsize=(10 * len(scenes), 11), layout='constrained')
    panels = figure.subplots(1, len(scenes), squeeze=False)[0]
    for axes, (label, scene) in zip(panels, scenes.items()):
        said = draw_finds(axes, scene)
        axes.set_title(f'{label}: {said}, {len(scene.trees)} trees', fontsize=14)
    figure.supxlabel(LEGEND, fontsize=12)
    figure.savefig(path, dpi=80, bbox_inches='tight', pad_inches=0.1)


def draw_finds(axes: Axes, scene: Scene) -> str:
    """Draw the finds of a scene, and the trees that were missed; a phrase on them."""
    matches = match(scene)
    hit = set(matches.values())
    right = [box for i, (box, _) in enumerate(scene.found) if i in matches]
    wrong = [box for i, (box, _) in enumerate(scene.found) if i not in matches]
    missed = [box for j, box in enumerate(scene.trees) if j not in hit]
    draw_scene(axes, scene, {MISSED: missed, TREE: right, WRONG: wrong})
    return f'{len(right)} found, {len(missed)} not, {len(wrong)} wrong'


def draw_scene(axes: Axes, scene: Scene, boxes: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draw a picture with boxes by their colour."""
    axes.imshow(scene.picture, interpolation='bicubic')
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    for colour, corners in boxes.items():
        # Corners count from the border of the first pixel, matplotlib from its middle.
        shapes = [box - 0.5 for box in corners]
        axes.add_collection(PolyCollection(shapes, facecolors='none', edgecolors=colour, lw=1.3))


def label_row(axes: Axes, label: str) -> None:
    """Write a label beside a row of panels."""
    axes.set_ylabel(label, fontsize=11)


def draw_curves(
    runs: Mapping[str, Sequence[tuple[Records, Records]]], metric: str, path: Path
) -> None:
    """Draw losses, and the AP of validations where there are any; a line a seed.

    Args:
        runs: Logged iterations and validations of each seed, by label.
        metric: Name of the AP in them.
        path: PNG to write.
    """
    validated = any(val for seeds in runs.values() for _, val in seeds)
    figure = Figure(figsize=(11 if validated else 6, 4.4), layout='constrained')
    panels = figure.subplots(1, 2 if validated else 1, squeeze=False)[0]
    for colour, (label, seeds) in zip(LINES, runs.items()):
        for i, (train, val) in enumerate(seeds):
            style = dict(color=colour, label=None if i else label, linewidth=1.4)
            steps = [record['step'] for record in train]
            panels[0].plot(steps, [record['loss'] for record in train], **style)
            if val:
                epochs = [record['step'] for record in val]
                values = [100 * record[metric] for record in val]
                panels[1].plot(epochs, values, marker='o', markersize=4, **style)
    finish_axes(panels[0], 'loss of the fine-tuning', 'iteration')
    if validated:
        finish_axes(panels[1], 'AP on the held-out photograph, percent', 'epoch')
    figure.savefig(path, dpi=90, bbox_inches='tight', pad_inches=0.1)
