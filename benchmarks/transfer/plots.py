"""Plots of the study: curves over seeds (Figure 7 of the paper), and all differences."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .configs import ITERATIONS
from .plan import FAMILIES, PRETRAININGS, SEEDS, TASKS, Chain
from .report import DEFAULT, INTEGRAL
from .results import PRETRAIN, row_name, scores
from .statistics import Estimate, estimate, paired

COLOURS = ('#999999', '#d55e00', '#56b4e9', '#0072b2')
RECONSTRUCTIONS = (
    ('backbone alone', 'mim', COLOURS[1]),
    ('integral, MIM only', 'no-mfm', COLOURS[2]),
    ('integral, MIM and MFM', DEFAULT, COLOURS[3]),
)


def draw_band(
    axes: Axes, x: np.ndarray, curves: list[list[float]], colour: str, label: str
) -> None:
    """Mean of curves and the 95 % confidence interval of the mean."""
    found = [estimate(values) for values in zip(*curves)]
    mean = np.array([e.mean for e in found])
    half = np.array([0.0 if math.isnan(e.half) else e.half for e in found])
    axes.plot(x, mean, color=colour, label=label)
    axes.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def draw_curves(rows: dict[str, Any], path: Path) -> None:
    """Reconstruction loss while pre-training; score while fine-tuning, for each task."""
    panels = ['loss', *TASKS]
    figure, grid = plt.subplots(
        len(FAMILIES), len(panels), figsize=(4 * len(panels), 3.4 * len(FAMILIES)), squeeze=False
    )
    for line, (family, label) in zip(grid, FAMILIES.items()):
        draw_losses(line[0], rows, family)
        line[0].set_title(f'{label}: pixel loss, pre-training', fontsize=10)
        for axes, (task, (name, metric)) in zip(line[1:], TASKS.items()):
            draw_scores(axes, rows, family, task)
            axes.set_title(f'{label}: {name}', fontsize=10)
            axes.set_ylabel(metric)
    for axes in grid.flat:
        axes.spines[['top', 'right']].set_visible(False)
        axes.set_xlabel('iteration')
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
        else:
            axes.text(0.5, 0.5, 'not run', ha='center', transform=axes.transAxes)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_losses(axes: Axes, rows: dict[str, Any], family: str) -> None:
    """Reconstruction loss of a family's pre-trainings, without their first steps."""
    for label, name, colour in RECONSTRUCTIONS:
        found = [rows.get(row_name(Chain(seed, family, name), PRETRAIN)) for seed in SEEDS]
        curves = [row['losses']['loss_pixel'] for row in found if row]
        if curves:
            length = len(curves[0])
            x = (np.arange(length) + 0.5) / length * ITERATIONS
            skip = length // 8
            draw_band(axes, x[skip:], [c[skip:] for c in curves], colour, label)


def draw_scores(axes: Axes, rows: dict[str, Any], family: str, task: str) -> None:
    """Score of a task over the iterations of the fine-tuning."""
    for (label, name, loaded), colour in zip(INTEGRAL, COLOURS):
        found = [rows.get(row_name(Chain(seed, family, name), task, loaded)) for seed in SEEDS]
        curves = [row['curve'] for row in found if row]
        if curves:
            x = np.array([point[0] for point in curves[0]])
            draw_band(axes, x, [[point[1] for point in c] for c in curves], colour, label)


def draw_differences(rows: dict[str, Any], path: Path) -> None:
    """Every pre-training's mIoU less that of the default, of paired runs."""
    found: list[tuple[str, str, Estimate]] = []
    for family, label in FAMILIES.items():
        reference = scores(rows, family, DEFAULT, 'classes')
        for name, plan in PRETRAININGS.items():
            if name == DEFAULT or family not in plan.families:
                continue
            pair = paired(scores(rows, family, name, 'classes', plan.pyramid), reference)
            if pair is not None:
                found.append((label, plan.label, pair))
    figure, axes = plt.subplots(figsize=(7.5, 0.8 + 0.32 * max(1, len(found))))
    for y, (family, _, pair) in enumerate(reversed(found)):
        colour = COLOURS[3] if family == 'iTPN' else COLOURS[1]
        half = 0.0 if math.isnan(pair.half) else pair.half
        axes.errorbar(pair.mean, y, xerr=half, fmt='o', color=colour, capsize=2, markersize=4)
    axes.set_yticks(
        range(len(found)),
        [f'{label} ({family})' for family, label, _ in reversed(found)],
        fontsize=8,
    )
    axes.axvline(0, color='#444444', linewidth=0.8)
    axes.set_xlabel('mIoU less that of the default, same seed; 95 % confidence')
    axes.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
