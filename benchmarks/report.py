"""Table, JSON file and plot of the measured rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

MIB = 2**20
NOTES = dict(
    inference=(
        'Speed-up and less memory are against `plain` (same weights, same outputs, unfused), from',
        'medians of interleaved passes. Peak: what one pass takes on top of weights and image.',
        'Of GEMM rate: matrix products of a pass per second, as a share of `gemm_gflops`.',
    ),
    throughput=(
        'With head: with the last LayerNorm and a head of 1000 classes, as the released',
        'classifiers. Of GEMM rate: matrix products per second, as a share of `gemm_gflops`; of',
        'stated peak: of what was given as `--peak-tflops`. Cosine: the smallest one of an output',
        'with that of the same weights in float32 and eager mode.',
    ),
    pretrain=('One optimiser step, with the update of the teacher.',),
)
# title of a plot, by the key of a row
PANELS = dict(
    inference=dict(speedup='times as fast as plain', memory_ratio='times less peak memory'),
    throughput=dict(images_per_s='images per second', gemm_share='share of GEMM rate'),
    pretrain=dict(images_per_s='images per second'),
)


def _column(key: str, form: str, scale: float = 1.0) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        value = row.get(key)
        return '-' if value is None else form.format(value / scale)

    return cell


COLUMNS: dict[str, Callable[[dict], str]] = {
    'model': lambda row: row['model'],
    'size': lambda row: row['size'],
    'variant': lambda row: row['variant'],
    'parameters M': _column('parameters', '{:.2f}', 1e6),
    'with head M': _column('classifier_parameters', '{:.2f}', 1e6),
    'GFLOP/image': _column('gflop_per_image', '{:.2f}'),
    'median s': _column('median_s', '{:.3f}'),
    'fastest s': _column('min_s', '{:.3f}'),
    'speed-up': _column('speedup', '{:.2f}x'),
    'images/s': _column('images_per_s', '{:.2f}'),
    'of GEMM rate': _column('gemm_share', '{:.0%}'),
    'of stated peak': _column('peak_share', '{:.0%}'),
    'peak MiB': _column('peak_bytes', '{:.0f}', MIB),
    'less memory': _column('memory_ratio', '{:.2f}x'),
    'rel. error': _column('relative_error', '{:.1e}'),
    'cosine': _column('cosine', '{:.6f}'),
}


def derived(row: dict, machine: dict) -> dict:
    """The row with what follows from it and the rates of the machine."""
    if row.get('gflop') is None:
        return row
    rate = row['gflop'] / row['median_s']
    more = dict(
        gflop_per_image=row['gflop'] / row['batch'], gemm_share=rate / machine['gemm_gflops']
    )
    if machine.get('stated_peak_gflops'):
        more['peak_share'] = rate / machine['stated_peak_gflops']
    return row | more


def markdown(rows: Sequence[dict], settings: dict, machine: dict) -> str:
    """The report as Markdown text; columns that hold nothing are left out."""
    rows = [derived(row, machine) for row in rows]
    table = {name: [cell(row) for row in rows] for name, cell in COLUMNS.items()}
    table = {name: cells for name, cells in table.items() if set(cells) != {'-'}}
    lines = ['# Benchmark', '']
    lines += [f'* {name}: {value}' for name, value in {**settings, **machine}.items()]
    lines += ['', '| ' + ' | '.join(table) + ' |', '| ' + ' | '.join(['---'] * len(table)) + ' |']
    lines += ['| ' + ' | '.join(cells) + ' |' for cells in zip(*table.values())]
    return '\n'.join([*lines, '', *NOTES[rows[0]['mode']], ''])


def _plot(rows: Sequence[dict], machine: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    rows = [derived(row, machine) for row in rows if row['variant'] != 'plain']
    panels = PANELS[rows[0]['mode']]
    one_model = len({row['model'] for row in rows}) == 1
    for row in rows:
        row['place'] = row['size'] if one_model else f'{row["model"]}\n{row["size"]}'
    places = list(dict.fromkeys(row['place'] for row in rows))
    variants = list(dict.fromkeys(row['variant'] for row in rows))
    wide = max(4.5, 0.5 * len(places) * (1 + len(variants)))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(wide * len(panels), 3.2), squeeze=False)
    width = 0.8 / len(variants)
    for axis, (key, title) in zip(axes[0], panels.items()):
        for i, variant in enumerate(variants):
            chosen = {row['place']: row for row in rows if row['variant'] == variant}
            heights = [chosen[place][key] or 0.0 for place in places]
            spots = [x + (i - (len(variants) - 1) / 2) * width for x in range(len(places))]
            bars = axis.bar(spots, heights, width, label=variant)
            axis.bar_label(bars, fmt='%.2f', fontsize=8)
        if key != 'images_per_s':
            axis.axhline(1.0, color='black', linewidth=0.8)
        axis.set_xticks(range(len(places)), places, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(y=0.15)
    if len(variants) > 1:
        axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report_name(settings: dict) -> str:
    """`fastitpn-base_inference_cpu-fp32`; several models of a family share its name."""
    models = settings['models']
    families = sorted({name.split('-')[0] for name in models})
    label = models[0] if len(models) == 1 else '-'.join(families)
    return f'{label}_{settings["mode"]}_{settings["device"]}-{settings["dtype"]}'


def write_report(rows: Sequence[dict], settings: dict, machine: dict, out: Path) -> list[Path]:
    """Write a table (`.md`), the rows (`.json`) and a plot (`.png`) into `out`; returns the paths.

    `report_name` gives the name of the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = report_name(settings)
    table, results, plot = (out / f'{stem}.{ending}' for ending in ('md', 'json', 'png'))
    table.write_text(markdown(rows, settings, machine))
    content = dict(settings=settings, machine=machine, rows=list(rows))
    results.write_text(json.dumps(content, indent=2) + '\n')
    _plot(rows, machine, plot)
    return [table, results, plot]
