"""Plot of whole detectors: seconds of an image in backbone, pyramid and heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PARTS = (
    ('backbone', 'backbone_share', '#4c78a8'),
    ('pyramid, or the neck of Swin-B', 'neck_share', '#72b7b2'),
    ('heads', 'head_share', '#e0a458'),
)


def plot_detectors(rows: Sequence[dict], path: Path) -> None:
    """A panel for each detector and case, a bar for each backbone."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row['detector'], row['size'], row['batch'], row['dtype'])
        panels.setdefault(key, []).append(row)
    bars = max(map(len, panels.values()))
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, len(panels) * (1.1 + 0.32 * bars) + 0.5), squeeze=False
    )
    for axis, (key, group) in zip(axes.flat, panels.items()):
        names = [
            row['model'] + ('' if row['variant'] == 'peer' else f' {row["variant"]}')
            for row in group
        ]
        left = [0.0] * len(group)
        for label, share, color in PARTS:
            seconds = [row['median_s'] / row['batch'] * row[share] for row in group]
            axis.barh(names, seconds, left=left, color=color, label=label)
            left = [a + b for a, b in zip(left, seconds)]
        for i, total in enumerate(left):
            axis.text(1.01 * total, i, f'{total:.3g} s', va='center', fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.15 * max(left))
        axis.set_title('{}, {}, batch {}, {}'.format(*key), fontsize=10)
        axis.set_xlabel('seconds per image', fontsize=9)
        axis.tick_params(labelsize=9)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
