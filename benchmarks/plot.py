"""Plot of the measured rows: speed relative to dense in the form of Figure 5, or images/s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.paper import FIGURE_5, TABLE_7

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = (
    ('paper, Fig. 5: COCO Mask R-CNN, whole detector (with 1.10 of ConvMLP)', FIGURE_5, 'D'),
    ('paper, Table VII: DOTA Faster R-CNN, whole detector', TABLE_7, 's'),
)
COLORS = {False: '#4c78a8', True: '#f58518'}  # eager, compiled
OTHERS = {False: '#888888', True: '#b5651d'}  # what is not ours


def _shared(row: dict, relative: bool) -> tuple:
    """What the bars of a panel have in common."""
    model = (row['model'],) if relative else ()
    return (*model, row['size'], row['batch'], row['dtype'])


def _title(row: dict, relative: bool) -> str:
    model = row['model'] + (' with pyramid, ' if row['pyramid'] else ' backbone, ')
    case = f'{row["size"]}, batch {row["batch"]}, {row["dtype"]}'
    return (model if relative else '') + case


def _panel(axis: Axes, rows: Sequence[dict], relative: bool) -> None:
    """Bars from top to bottom, the paper's figures as marks, and the value beyond both."""

    def name(row: dict) -> str:
        if row['variant'] == 'peer':
            return row['model']
        return row['variant'] if relative else f'{row["model"]} {row["variant"]}'

    key = 'to_dense' if relative else 'images_per_s'
    names = list(dict.fromkeys(name(row) for row in rows))
    kinds = sorted({row['compiled'] for row in rows})
    height = 0.8 / len(kinds)
    marks = MARKS if relative and rows[0]['mode'] == 'inference' else ()
    longest = max([row[key] for row in rows] + [1.9 if marks else 0.0])
    for kind in kinds:
        chosen = [row for row in rows if row['compiled'] == kind]
        spots = [
            names.index(name(row)) + (kinds.index(kind) + 0.5) * height - 0.4 for row in chosen
        ]
        label = 'ours' + (', compiled' if kind else ', eager' if len(kinds) > 1 else '')
        values = [row[key] for row in chosen]
        colors = [
            (OTHERS if row['variant'] in ('plain', 'peer') else COLORS)[kind] for row in chosen
        ]
        axis.barh(spots, values, 0.9 * height, color=colors)
        axis.barh([0], [0], label=label, color=COLORS[kind])  # for the legend
        for spot, value in zip(spots, values):
            text = f'{value:.2f}' if relative else f'{value:#.3g}'
            # at the foot of the bar, where no mark stands
            axis.text(0.015 * longest, spot, text, va='center', fontsize=8, color='white')
    for label, values, shape in marks:
        found = [(values[text], i) for i, text in enumerate(names) if values.get(text, 1.0) != 1.0]
        if found:
            axis.scatter(
                *zip(*found), marker=shape, s=34, facecolor='white', edgecolor='black',
                label=label, zorder=3,
            )  # fmt: skip
    if relative:
        axis.axvline(1.0, color='black', linewidth=0.8)
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.tick_params(axis='x', labelsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08 * longest)
    axis.set_xlabel('speed relative to dense' if relative else 'images per second', fontsize=9)
    axis.set_title(_title(rows[0], relative), fontsize=10)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)


def plot(rows: Sequence[dict], path: Path) -> None:
    """A panel for each model and case with several variants, otherwise one for each case."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    variants = {row['variant'] for row in rows}
    relative = len(variants) > 1 and 'peer' not in variants
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(_shared(row, relative), []).append(row)
    cols = min(2, len(groups))
    lines = -(-len(groups) // cols)
    bars = max(len(group) for group in groups.values())
    figure, axes = pyplot.subplots(
        lines, cols, figsize=(6.4 * cols, lines * (1.3 + 0.27 * bars) + 0.8), squeeze=False
    )
    for axis, group in zip(axes.flat, groups.values()):
        _panel(axis, group, relative)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    room = 0.0
    if len(labels) > 1:
        figure.legend(handles, labels, loc='lower center', fontsize=8, frameon=False)
        room = (0.2 * len(labels) + 0.2) / figure.get_figheight()
    figure.tight_layout(rect=(0, room, 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
