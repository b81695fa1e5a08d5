"""Table, JSON file and plot of the measured rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

MIB = 2**20


def _row_cells(row: dict, gemm_gflops: float) -> list[str]:
    rate = None if row['gflop'] is None else row['gflop'] / row['median_s'] / gemm_gflops
    peak, saved, error = row['peak_bytes'], row['memory_ratio'], row['relative_error']
    return [
        row['size'],
        row['variant'],
        f'{row["median_s"]:.3f}',
        f'{row["min_s"]:.3f}',
        '-' if row['speedup'] is None else f'{row["speedup"]:.2f}x',
        f'{row["images_per_s"]:.2f}',
        '-' if rate is None else f'{rate:.0%}',
        '-' if peak is None else f'{peak / MIB:.0f}',
        '-' if saved is None else f'{saved:.2f}x',
        '-' if error is None else f'{error:.1e}',
    ]


def markdown(rows: Sequence[dict], settings: dict, machine: dict) -> str:
    """The report as Markdown text."""
    header = [
        'size',
        'model',
        'median s',
        'fastest s',
        'speed-up',
        'images/s',
        'of GEMM rate',
        'peak MiB',
        'less memory',
        'rel. error',
    ]
    lines = ['# Benchmark', '']
    lines += [f'* {name}: {value}' for name, value in {**settings, **machine}.items()]
    lines += ['', '| ' + ' | '.join(header) + ' |', '| ' + ' | '.join(['---'] * len(header)) + ' |']
    lines += ['| ' + ' | '.join(_row_cells(row, machine['gemm_gflops'])) + ' |' for row in rows]
    if all(row['mode'] == 'pretrain' for row in rows):
        return '\n'.join([*lines, '', 'One optimiser step, with the update of the teacher.', ''])
    lines += [
        '',
        'Speed-up and less memory are against `plain` (same weights, same outputs, unfused), from',
        'medians of interleaved passes. Peak: what one pass takes on top of weights and image.',
        'Of GEMM rate: matrix products of a pass per second, as a share of `gemm_gflops`.',
        '',
    ]
    return '\n'.join(lines)


def _plot(rows: Sequence[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = [row for row in rows if row['variant'] != 'plain']
    sizes = list(dict.fromkeys(row['size'] for row in rows))
    variants = list(dict.fromkeys(row['variant'] for row in rows))
    panels = [('speedup', 'times as fast as plain'), ('memory_ratio', 'times less peak memory')]
    if all(row['speedup'] is None for row in rows):
        panels = [('images_per_s', 'images per second')]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    width = 0.8 / len(variants)
    for axis, (key, title) in zip(axes[0], panels):
        for i, variant in enumerate(variants):
            chosen = {row['size']: row for row in rows if row['variant'] == variant}
            heights = [chosen[size][key] or 0.0 for size in sizes]
            places = [x + (i - (len(variants) - 1) / 2) * width for x in range(len(sizes))]
            bars = axis.bar(places, heights, width, label=variant)
            axis.bar_label(bars, fmt='%.2f', fontsize=8)
        if key != 'images_per_s':
            axis.axhline(1.0, color='black', linewidth=0.8)
        axis.set_xticks(range(len(sizes)), sizes)
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
    if len(variants) > 1:
        axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_report(rows: Sequence[dict], settings: dict, machine: dict, out: Path) -> list[Path]:
    """Write `table.md`, `results.json` and `ratios.png` into `out`; returns the three paths."""
    out.mkdir(parents=True, exist_ok=True)
    table, results, plot = (out / name for name in ('table.md', 'results.json', 'ratios.png'))
    table.write_text(markdown(rows, settings, machine))
    content = dict(settings=settings, machine=machine, rows=list(rows))
    results.write_text(json.dumps(content, indent=2) + '\n')
    _plot(rows, plot)
    return [table, results, plot]
