"""Time and peak memory of the shipped backbone and pyramid against a plain implementation.

    python tools/benchmark.py --sizes 224x224 512x512 800x1280

Writes a table, a JSON file and a plot into `--out`. `benchmarks/README.md` says what is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.inference import run_inference  # noqa: E402
from benchmarks.measure import machine_facts  # noqa: E402
from benchmarks.report import markdown, write_report  # noqa: E402


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
        '--arch', default='base', help='tiny, small, base, large, or test (very small)'
    )
    parser.add_argument(
        '--sizes', nargs='+', type=parse_size, default=[(224, 224), (512, 512), (800, 1280)]
    )
    parser.add_argument('--batch', type=positive, default=1, help='images in a pass')
    parser.add_argument(
        '--repeats',
        type=positive,
        default=3,
        help='passes at the most expensive size; others run up to 4 times as often',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--dtype', choices=('fp32', 'bf16'), default='fp32', help='bf16 is autocast'
    )
    parser.add_argument('--compile', action='store_true', help='add our model under torch.compile')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU here, use --device cpu')
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    args = parse_args(argv)
    machine = machine_facts(args.device, args.dtype)
    settings = dict(
        mode='inference', arch=args.arch, batch=args.batch, device=args.device, dtype=args.dtype
    )
    print(', '.join(f'{name} {value}' for name, value in {**settings, **machine}.items()))
    rows = run_inference(
        arch=args.arch,
        sizes=args.sizes,
        batch=args.batch,
        repeats=args.repeats,
        device=args.device,
        dtype=args.dtype,
        compiled=args.compile,
    )
    print('\n' + markdown(rows, settings, machine))
    for path in write_report(rows, settings, machine, args.out):
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
