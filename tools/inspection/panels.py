"""Draws rows of pictures with titles, and what stands in them for attention and features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

WIDTH = 13.0  # inches
TALLEST = 4.2  # inches, of a row
QUERY, WINDOW = '#ff2020', '#19d3f3'  # the first as in Figure 6 of the paper
COLOURS = colormaps['inferno']
SHARE = 0.6  # of the colour in a mixture with the grey picture


class Panel(NamedTuple):
    """A picture of a row.

    Args:
        title: Above it.
        pixels: (h, w, 3) of 0 to 1.
        extent: Pixels (height, width) of the shown picture that they cover, from its upper left.
        queries: Squares (left, top, side, label) to mark.
        windows: Pixels where windows begin: rows, columns.
    """

    title: str
    pixels: np.ndarray
    extent: tuple[int, int]
    queries: Sequence[tuple[int, int, int, str]] = ()
    windows: tuple[Sequence[int], Sequence[int]] = ((), ())


class Section(NamedTuple):
    """Rows of panels under one title."""

    title: str
    rows: Sequence[Sequence[Panel]]


def paint_attention(picture: np.ndarray, shares: np.ndarray, patch: int) -> np.ndarray:
    """A picture (H, W, 3) of 0 to 1 in grey, and attention (h, w) in colours up to its largest.

    Where attention is NaN or 0, as it is outside a window, the grey is left as it is.
    """
    height, width = picture.shape[:2]
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    largest = np.nanmax(shares, initial=0)
    heat = COLOURS(np.nan_to_num(shares) / (largest or 1))[..., :3]
    weight = np.where(shares > 0, SHARE, 0.0)  # also where NaN
    heat, weight = (
        x.repeat(patch, 0).repeat(patch, 1)[:height, :width] for x in (heat, weight[..., None])
    )
    return weight * heat + (1 - weight) * grey


def describe_peak(shares: np.ndarray) -> str:
    """How far the largest share of attention is above an even one."""
    if not np.nanmax(shares, initial=0):
        return 'has left before this layer'
    return f'up to {np.nanmax(shares) * (shares > 0).sum() / np.nansum(shares):.1f} x even'


def draw_sections(
    title: str, sections: Sequence[Section], notes: str, shape: tuple[int, ...]
) -> Figure:
    """Draw sections below each other.

    Args:
        title: Above all.
        sections: What to draw.
        notes: Below all.
        shape: (H, W, ...) of the picture that all panels show.
    """
    aspect = shape[0] / shape[1]
    strips: list[tuple[float, str | Sequence[Panel]]] = [(0.3, title)]
    for section in sections:
        strips.append((0.3, section.title))
        for row in section.rows:
            strips.append((min(WIDTH / len(row) * aspect, TALLEST) + 0.4, row))
    strips.append((0.2 * (notes.count('\n') + 1) + 0.1, notes))
    heights = [height for height, _ in strips]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout='constrained')
    for part, (_, content) in zip(
        figure.subfigures(len(strips), 1, height_ratios=heights), strips, strict=True
    ):
        if content is notes:
            part.text(0.01, 0.5, notes, fontsize=9, color='#444444', va='center')
        elif isinstance(content, str):
            weight = 'normal' if content is title else 'bold'
            part.text(0.5, 0.5, content, fontsize=11, fontweight=weight, ha='center', va='center')
        else:
            for axes, panel in zip(part.subplots(1, len(content), squeeze=False)[0], content):
                _show(axes, panel, shape)
    return figure


def _show(axes: Axes, panel: Panel, shape: tuple[int, ...]) -> None:
    height, width = panel.extent
    axes.imshow(panel.pixels, extent=(0, width, height, 0), interpolation='antialiased')
    axes.set_title(panel.title, fontsize=9)
    axes.set_axis_off()
    axes.set_xlim(0, shape[1])
    axes.set_ylim(shape[0], 0)
    for edges, line in zip(panel.windows, (axes.axhline, axes.axvline), strict=True):
        for edge in edges:
            line(edge, color=WINDOW, linewidth=1.2)
    for left, top, side, label in panel.queries:
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=QUERY, linewidth=2))
        if label:
            below = top + 2.5 * side < height
            place = (left + side / 2, top + side if below else top)
            shade = dict(facecolor='black', alpha=0.55, linewidth=0, pad=1)
            style = dict(color='white', size=8, ha='center', va='top' if below else 'bottom')
            axes.annotate(
                label,
                place,
                (0, -3 if below else 3),
                textcoords='offset points',
                bbox=shade,
                **style,
            )
