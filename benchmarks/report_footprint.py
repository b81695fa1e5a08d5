"""Table, JSON file and plot of predicted memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.footprint import Training, largest_batch

MIB, GIB = 2**20, 2**30
NOTE = """\
Predicted on tensors without contents, for AdamW. Step: what a training step takes at most on top of
weights, teacher and optimizer: activations, gradients and what comes and goes. Left out: buffers
inside of operators, gaps of the allocator, libraries and communication; heads of downstream tasks.
Largest batch: images on one device."""


def row_of(training: Training, limits: Sequence[float], measure: bool) -> dict:
    """Predicted bytes of a training, the largest batches in `limits` GiB, and the measured step."""
    footprint = training.predict()
    row = dict(**asdict(training), **asdict(footprint), total=footprint.total, largest_batch={})
    for limit in limits:
        row['largest_batch'][f'{limit:g}'] = largest_batch(training, int(limit * GIB))
    if measure:
        row['measured_step'] = training.measure()
    return row


def table(rows: Sequence[dict]) -> str:
    """The rows as a table in Markdown."""
    limits = list(rows[0]['largest_batch'])
    header = ['model', 'size', 'batch', 'type', 'recomputed', 'weights MiB', 'teacher', 'optimizer']
    header += ['step', 'total GiB', *(f'largest batch in {limit} GiB' for limit in limits)]
    measured = 'measured_step' in rows[0]
    header += ['measured step', 'predicted / measured'] * measured
    lines = [header, ['---'] * len(header)]
    for row in rows:
        cells = [row['model'], '{}x{}'.format(*row['size']), row['batch'], row['dtype']]
        cells += [row['checkpointing']]
        cells += [f'{row[k] / MIB:.0f}' for k in ('weights', 'teacher', 'optimizer', 'step')]
        cells += [f'{row["total"] / GIB:.2f}', *(row['largest_batch'][limit] for limit in limits)]
        if measured:
            ratio = row['step'] / row['measured_step']
            cells += [f'{row["measured_step"] / MIB:.0f}', f'{ratio:.3f}']
        lines.append(cells)
    return '\n'.join('| ' + ' | '.join(map(str, cells)) + ' |' for cells in lines)


def write_footprints(rows: Sequence[dict], machine: dict, out: Path) -> list[Path]:
    """Write table, rows and plot into the folder `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    models = '+'.join(dict.fromkeys(row['model'] for row in rows))
    stem = f'{models}_memory-{"pretrain" if rows[0]["pretrain"] else "train"}'
    paths = [out / f'{stem}{suffix}' for suffix in ('.md', '.json', '.png')]
    paths[0].write_text(f'{table(rows)}\n\n{NOTE}\n')
    paths[1].write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + '\n')
    plot_footprints(rows, paths[2])
    return paths


def plot_footprints(rows: Sequence[dict], path: Path) -> None:
    """Total over the batch, a panel for each model and size, a line for each way to train it."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        panel = panels.setdefault('{}, {}x{}'.format(row['model'], *row['size']), {})
        label = f'{row["dtype"]}, recomputed: {row["checkpointing"]}'
        panel.setdefault(label, []).append((row['batch'], row['total'] / GIB))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 0.6, 3.8), squeeze=False
    )
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for label, points in lines.items():
            axis.plot(*zip(*sorted(points)), marker='o', markersize=3, label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('images on a device', fontsize=9)
        axis.set_ylabel('GiB, predicted', fontsize=9)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=9)
        for side in ('top', 'right'):
            axis.spines[side].set_visible(False)
    axes.flat[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
