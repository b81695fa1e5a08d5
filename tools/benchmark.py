"""Time and peak memory of the shipped models, against a plain implementation where there is one.

    python tools/benchmark.py --sizes 224x224 512x512 800x1280
    python tools/benchmark.py --mode pretrain --device cuda --dtype bf16 --batch 256

Writes a table, a JSON file and a plot into `--out`. `benchmarks/README.md` says what is measured.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`, which is no part of the installed package

import torch  # noqa: E402

from benchmarks.inference import run_inference  # noqa: E402
from benchmarks.measure import machine_facts  # noqa: E402
from benchmarks.models import ARCHS  # noqa: E402
from benchmarks.report import markdown, write_report  # noqa: E402

SIZES = dict(inference=[(224, 224), (512, 512), (800, 1280)], pretrain=[(224, 224)])


def parse_size(text: str) -> tuple[int, int]:
    """`HEIGHTxWIDTH` as two multiples of 16 that are large enough for the level of stride 64."""
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f'must be HEIGHTxWIDTH such as 800x1280, but got {text!r}')
    height, width = map(int, parts)
    if min(height, width) < 64 or height % 16 or width % 16:
        raise argparse.ArgumentTypeError(
            f'both sides must be multiples of 16 of at least 64, but got {text!r}'
        )
    return height, width


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, but got {text!r}')
    return int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--mode',
        choices=sorted(SIZES),
        default='inference',
        help='inference: backbone and pyramid; pretrain: one optimiser step (needs mmpretrain)',
    )
    parser.add_argument(
        '--arch', choices=sorted(ARCHS), default='base', help='test: a very small one'
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        help='default: 224x224 512x512 800x1280; 224x224 for pretrain',
    )
    parser.add_argument('--batch', type=positive, default=1, help='images in a pass')
    parser.add_argument(
        '--repeats',
        type=positive,
        default=3,
        help='passes at the most expensive size; in inference others run up to 4 times as often',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--dtype', choices=('fp32', 'bf16'), default='fp32', help='bf16 is autocast'
    )
    parser.add_argument('--compile', action='store_true', help='add our model under torch.compile')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    args = parser.parse_args(argv)
    args.sizes = args.sizes or SIZES[args.mode]
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU here, use --device cpu')
    if find_spec('matplotlib') is None:
        parser.error('the plot needs matplotlib: pip install matplotlib')
    if args.mode == 'pretrain':
        if args.device == 'cpu' and args.dtype == 'bf16':
            parser.error('--mode pretrain --dtype bf16 needs --device cuda; use --dtype fp32')
        if any(height != width for height, width in args.sizes):
            parser.error('--mode pretrain needs square --sizes')
        if args.compile:
            parser.error('--compile belongs to --mode inference')
        if find_spec('mmpretrain') is None:
            parser.error('--mode pretrain needs mmpretrain: `python -m itpn_mm doctor` says how')
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    args = parse_args(argv)
    settings = {name: getattr(args, name) for name in ('mode', 'arch', 'batch', 'device', 'dtype')}
    machine = machine_facts(args.device, args.dtype)
    print(', '.join(f'{name} {value}' for name, value in {**settings, **machine}.items()))
    common = dict(
        arch=args.arch,
        sizes=args.sizes,
        batch=args.batch,
        repeats=args.repeats,
        device=args.device,
        dtype=args.dtype,
    )
    if args.mode == 'pretrain':
        from benchmarks.pretrain import run_pretrain  # needs mmpretrain

        rows = run_pretrain(**common)
    else:
        rows = run_inference(**common, compiled=args.compile)
    print('\n' + markdown(rows, settings, machine))
    for path in write_report(rows, settings, machine, args.out):
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
