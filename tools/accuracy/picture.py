"""The plot: measured beside the paper's figure, where there are both."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MEASURED, PAPER = '#4c78a8', '#888888'
ELSEWHERE = {'mAP': "; the paper's of the test server"}  # that are of other data


def draw(summary: dict, path: Path) -> bool:
    """Draw a panel a metric, with a line for each config.

    Args:
        summary: What `report.summarise` returns.
        path: Of the PNG.

    Returns:
        Whether there was anything to draw.
    """
    panels: dict[str, list[tuple[str, dict]]] = {}
    for row in summary['rows']:
        for figure in row['figures']:
            if figure['difference'] is not None:
                panels.setdefault(figure['metric'], []).append((row['name'], figure))
    if not panels:
        return False
    heights = [len(pairs) + 1.5 for pairs in panels.values()]
    page = Figure(figsize=(11, 0.6 + 0.36 * sum(heights)), layout='constrained')
    axes = page.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (metric, pairs) in zip(axes, panels.items()):
        _draw_panel(axis, metric, pairs)
    axes[0].legend(loc='lower right', bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    page.savefig(path, dpi=110)
    return True


def _draw_panel(axis: Axes, metric: str, pairs: list[tuple[str, dict]]) -> None:
    places = range(len(pairs))
    paper = [figure['paper'] for _, figure in pairs]
    measured = [figure['measured'] for _, figure in pairs]
    axis.hlines(places, paper, measured, color='#cccccc', linewidth=3, zorder=1)
    axis.scatter(
        paper, places, s=60, facecolor='white', edgecolor=PAPER, linewidth=1.8, label='paper',
        zorder=2,
    )  # fmt: skip
    axis.scatter(measured, places, s=36, color=MEASURED, label='measured', zorder=3)
    for place, (_, figure) in zip(places, pairs):
        text = f'{figure["measured"]:.2f} ({round(figure["difference"], 2) + 0.0:+.2f})'
        end = max(figure['measured'], figure['paper'])
        axis.annotate(
            text, (end, place), xytext=(8, 0), textcoords='offset points', va='center', fontsize=8
        )
    axis.set_yticks(places, [name for name, _ in pairs], fontsize=8)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.margins(x=0.15)
    axis.tick_params(axis='x', labelsize=8)
    axis.set_xlabel(f'{metric}, percent{ELSEWHERE.get(metric, "")}', fontsize=9)
    for side in ('top', 'right'):
        axis.spines[side].set_visible(False)
