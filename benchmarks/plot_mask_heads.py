"""Plot of mask heads: seconds of a training step in each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

COLORS = ('#4c78a8', '#72b7b2', '#e0a458', '#b0b0b0')


def plot_mask_heads(rows: Sequence[dict], path: Path) -> None:
    """A panel for each case, a bar for each head."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (*row['size'], row['batch'], row['queries'], row['dtype'])
        panels.setdefault(key, []).append(row)
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 1.9 * len(panels) + 0.6), squeeze=False
    )
    for axis, (key, group) in zip(axes.flat, panels.items()):
        left = [0.0] * len(group)
        for color, part in zip(COLORS, group[0]['parts']):
            seconds = [row['parts'][part] for row in group]
            axis.barh([row['head'] for row in group], seconds, left=left, color=color, label=part)
            left = [a + b for a, b in zip(left, seconds)]
        for i, (row, end) in enumerate(zip(group, left)):
            text = f'{row["median_s"]:.3g} s ({row["time_to_peer"]:.2f}x)'
            axis.text(1.01 * end, i, text, va='center', fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * max(left))
        axis.set_title('{}x{}, batch {}, {} queries, {}'.format(*key), fontsize=10)
        axis.set_xlabel('seconds of a training step', fontsize=9)
        axis.tick_params(labelsize=9)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='lower center', ncols=4, fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
