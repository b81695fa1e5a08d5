"""Time and memory of training steps of mask heads: MaskDINO beside mmdet's Mask2Former.

    python tools/benchmark_mask_heads.py --sizes 512x512 1024x1024
    python tools/benchmark_mask_heads.py --device cuda --dtype amp --batch 8 --sizes 1024x1024

Equal maps, queries, levels, layers and points; random weights and rectangles as objects. Backbones
are left out, as they are the same. Writes a table, a JSON file and a plot into `--out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`, which is no part of the installed package

import torch  # noqa: E402

from benchmarks.mask_heads import HEADS, PARTS, Case, run_mask_heads  # noqa: E402
from benchmarks.measure import machine_facts  # noqa: E402
from benchmarks.plot_mask_heads import plot_mask_heads  # noqa: E402
from tools.benchmark import parse_size, positive  # noqa: E402

MIB = 2**20
NOTE = """\
A forward and a backward pass of the losses of the head alone, without an optimiser. Medians of
interleaved steps, with the fastest and the slowest one; "x": times that of Mask2Former, so less is
better. Both heads have 3 levels, 6 encoder and 9 decoder layers and compare masks at 12544 points;
denoising adds 100 queries to those that are matched. Peak: what a step takes on top of weights and
maps."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The checked command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', nargs='+', type=parse_size, default=[(512, 512)])
    parser.add_argument('--batch', type=positive, default=2, help='images in a step')
    parser.add_argument('--queries', type=positive, default=100, help='without noisy ones')
    parser.add_argument('--objects', type=positive, default=20, help='of an image')
    parser.add_argument(
        '--dtype', choices=('fp32', 'amp'), default='fp32', help='amp: fp16 on a GPU, else bf16'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--repeats', type=positive, default=3, help='measured steps')
    parser.add_argument('--small', action='store_true', help='one layer of each, for a quick look')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    args = parser.parse_args(argv)
    if any(size % 32 for sizes in args.sizes for size in sizes):
        parser.error('--sizes must be multiples of 32')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU here, use --device cpu')
    return args


def markdown(rows: list[dict], machine: dict) -> str:
    """The report as Markdown text."""
    names = ['size', 'batch', 'queries', 'type', 'head', 'parameters M', 'median s', 'range', 'x']
    names += [*PARTS, 'peak MiB', 'x']
    lines = ['# Mask heads', '', *(f'* {name}: {value}' for name, value in machine.items()), '']
    lines += ['| ' + ' | '.join(names) + ' |', '| ' + ' | '.join(['---'] * len(names)) + ' |']
    for row in rows:
        cells = [
            '{}x{}'.format(*row['size']),
            row['batch'],
            row['queries'],
            row['dtype'],
            row['head'],
            f'{row["parameters"] / 1e6:.2f}',
            f'{row["median_s"]:.4g}',
            f'{row["min_s"]:.4g}..{row["max_s"]:.4g}',
            f'{row["time_to_peer"]:.2f}',
            *(f'{row["parts"][part] / row["median_s"]:.0%}' for part in PARTS),
            f'{row["peak_bytes"] / MIB:.0f}',
            f'{row["memory_to_peer"]:.2f}',
        ]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join([*lines, '', NOTE, ''])


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    args = parse_args(argv)
    machine = machine_facts(args.device)
    print(', '.join(f'{name} {value}' for name, value in machine.items()))
    cases = [
        Case(size, args.batch, args.queries, args.objects, args.dtype, args.device)
        for size in args.sizes
    ]
    rows = run_mask_heads(HEADS, cases, args.repeats, args.small)
    text = markdown(rows, machine)
    print('\n' + text)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f'mask-heads_train_{args.device}-{args.dtype}'
    stem.with_suffix('.md').write_text(text)
    content = json.dumps(dict(machine=machine, rows=rows), indent=2)
    stem.with_suffix('.json').write_text(content + '\n')
    plot_mask_heads(rows, stem.with_suffix('.png'))
    for suffix in ('md', 'json', 'png'):
        print(f'wrote {stem}.{suffix}')


if __name__ == '__main__':
    main()
