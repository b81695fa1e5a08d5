"""Table and JSON file of the measured rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import gemm_type
from benchmarks.paper import FIGURE_5, TABLE_7
from benchmarks.plot import plot
from benchmarks.plot_detectors import plot_detectors

MIB = 2**20
NOTES = dict(
    inference='A forward pass.',
    train='A forward and a backward pass, without an optimiser.',
    pretrain='An optimiser step of masked pre-training, with the update of the teacher.',
    detector='Prediction of a whole detector, from normalised images to boxes and masks.',
)
COMPARED = """\
Medians of interleaved passes, with the fastest and the slowest one. "x dense": times as fast as
`dense` of the same model, compiled or not as the row itself; "x plain": as the unfused formulation,
which is not compiled. Paper: speed of a whole detector relative to its dense one, Figure 5 (Mask
R-CNN on COCO; includes 1.10 for ConvMLP) and Table VII (Faster R-CNN on DOTA). GFLOP: matrix
products as torch counts them, and by a closed form. Selection: all that stage 3 does besides the
blocks of the backbone, in % of the dense time. Of GEMM rate: matrix products per second, as a share
of `gemm_gflops`. Peak: what a pass takes on top of weights and images; "less memory": `dense` over
it. Rel. error: distance of the outputs from those of `dense` in float32."""

DETECTORS = """\
Medians of interleaved passes, with the fastest and the slowest one; random weights. The stock heads
of mmdet's Mask R-CNN (R-50-FPN, 1x) and DINO (4 scales) with another backbone and neck. "x Swin-B":
times as fast as with Swin-B; "x dense": as with `dense` of the same model. Shares of the time: of
the backbone, of the pyramid (FPN or ChannelMapper for Swin-B), of all else. Each proposal of Mask
R-CNN is an object for its random head, of which 100 survive and get a mask."""


def _column(key: str, form: str, scale: float = 1.0) -> Callable[[dict], str]:
    def cell(row: dict) -> str:
        value = row.get(key)
        return '-' if value is None else form.format(value / scale)

    return cell


COLUMNS: dict[str, Callable[[dict], str]] = {
    'detector': lambda row: row.get('detector', '-'),
    'model': lambda row: row['model'] + ('' if row['pyramid'] else ' backbone'),
    'size': lambda row: row['size'],
    'batch': lambda row: str(row['batch']),
    'type': lambda row: row['dtype'],
    'variant': lambda row: row['variant'] + (', compiled' if row['compiled'] else ''),
    'parameters M': _column('parameters', '{:.2f}', 1e6),
    'GFLOP/image': _column('gflop_per_image', '{:.2f}'),
    'closed form': _column('closed_form_per_image', '{:.2f}'),
    'median s': _column('median_s', '{:.4g}'),
    'range': lambda row: f'{row["min_s"]:.4g}..{row["max_s"]:.4g}',
    'images/s': _column('images_per_s', '{:.4g}'),
    'x Swin-B': _column('to_peer', '{:.2f}'),
    'x dense': _column('to_dense', '{:.2f}'),
    'paper Fig. 5': _column('figure_5', '{:.2f}'),
    'paper Tab. VII': _column('table_7', '{:.2f}'),
    'x plain': _column('to_plain', '{:.2f}'),
    'backbone': _column('backbone_share', '{:.0%}'),
    'pyramid': _column('neck_share', '{:.0%}'),
    'heads': _column('head_share', '{:.0%}'),
    'selection': _column('selection_to_dense', '{:.1%}'),
    'of GEMM rate': _column('gemm_share', '{:.0%}'),
    'of stated peak': _column('peak_share', '{:.0%}'),
    'peak MiB': _column('peak_bytes', '{:.0f}', MIB),
    'less memory': _column('memory_to_dense', '{:.2f}x'),
    'rel. error': _column('relative_error', '{:.1e}'),
}


def derived(row: dict, machine: dict) -> dict:
    """The row with what follows from it, the rates of the machine and the paper's figures."""
    more = {}
    if row.get('gflop') is not None:
        rate = row['gflop'] / row['median_s']
        more['gflop_per_image'] = row['gflop'] / row['batch']
        more['gemm_share'] = rate / machine['gemm_gflops'][gemm_type(row['dtype'])]
        if machine.get('stated_peak_gflops'):
            more['peak_share'] = rate / machine['stated_peak_gflops']
    if row.get('gflop_closed_form') is not None:
        more['closed_form_per_image'] = row['gflop_closed_form'] / row['batch']
    if row['variant'] != 'dense' and row['mode'] == 'inference':
        more['figure_5'] = FIGURE_5.get(row['variant'])
        more['table_7'] = TABLE_7.get(row['variant'])
    return row | more


def markdown(rows: Sequence[dict], settings: dict, machine: dict) -> str:
    """The report as Markdown text; columns that hold nothing are left out."""
    rows = [derived(row, machine) for row in rows]
    table = {name: [cell(row) for row in rows] for name, cell in COLUMNS.items()}
    table = {name: cells for name, cells in table.items() if set(cells) != {'-'}}
    lines = ['# Benchmark', '']
    lines += [f'* {name}: {_plain(value)}' for name, value in {**settings, **machine}.items()]
    lines += ['', '| ' + ' | '.join(table) + ' |', '| ' + ' | '.join(['---'] * len(table)) + ' |']
    lines += ['| ' + ' | '.join(cells) + ' |' for cells in zip(*table.values())]
    mode = rows[0]['mode']
    notes = [NOTES[mode], *dict(pretrain=[], detector=[DETECTORS]).get(mode, [COMPARED])]
    return '\n'.join([*lines, '', *notes, ''])


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{key} {item}' for key, item in value.items())
    return ', '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def report_name(settings: dict) -> str:
    """`fastitpn-base_acceleration_cpu-fp32`: models, what was measured, device and types.

    Several models of a family share its name; `-backbone` follows where there is no pyramid,
    `-peers` where others are measured as well.
    """
    models = settings['models']
    families = sorted({name.split('-')[0] for name in models})
    label = models[0] if len(models) == 1 else '-'.join(families)
    label += '' if settings['pyramid'] else '-backbone'
    label += '-peers' if settings['peers'] else ''
    kind = settings['mode']
    if kind == 'inference' and set(settings['settings']) - {'dense'}:
        kind = 'acceleration'
    return f'{label}_{kind}_{settings["device"]}-{"-".join(settings["dtypes"])}'


def write_report(rows: Sequence[dict], settings: dict, machine: dict, out: Path) -> list[Path]:
    """Write a table (`.md`), the rows (`.json`) and a plot (`.png`) into `out`; returns the paths.

    `report_name` gives the name of the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    stem = report_name(settings)
    table, results, picture = (out / f'{stem}.{ending}' for ending in ('md', 'json', 'png'))
    table.write_text(markdown(rows, settings, machine))
    content = dict(settings=settings, machine=machine, rows=list(rows))
    results.write_text(json.dumps(content, indent=2) + '\n')
    (plot_detectors if settings['mode'] == 'detector' else plot)(rows, picture)
    return [table, results, picture]
