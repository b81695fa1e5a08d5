"""Time and peak memory of the shipped models, against a plain implementation where there is one.

    python tools/benchmark.py --models fastitpn-base --sizes 224x224 512x512 800x1280
    python tools/benchmark.py --mode throughput
    python tools/benchmark.py --mode throughput --device cuda --dtype bf16 --batch 128 \\
        --sizes 224x224 512x512 --repeats 20 --compile
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
from benchmarks.measure import gemm_gflops, machine_facts  # noqa: E402
from benchmarks.models import MODELS  # noqa: E402
from benchmarks.report import markdown, write_report  # noqa: E402
from benchmarks.throughput import run_throughput  # noqa: E402

SIZES = dict(
    inference=[(224, 224), (512, 512), (800, 1280)],
    throughput=[(224, 224)],
    pretrain=[(224, 224)],
)
DEFAULT_MODELS = dict(
    inference=['hivit-base'],
    throughput=['fastitpn-tiny', 'fastitpn-small', 'fastitpn-base', 'fastitpn-large'],
    pretrain=['hivit-base'],
)


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


def rate(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'must be a number above 0, but got {text!r}')
    return value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--mode',
        choices=sorted(SIZES),
        default='inference',
        help='inference: forward passes against a plain implementation; throughput: our forward '
        'passes alone, with weights in --dtype; pretrain: one optimiser step (needs mmpretrain)',
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=MODELS,
        metavar='MODEL',
        help=f'out of {", ".join(MODELS)} (test: a very small one); default: hivit-base, '
        'for throughput the four sizes of Fast-iTPN',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        help='default: 224x224 512x512 800x1280 for inference, 224x224 for others',
    )
    parser.add_argument('--batch', type=positive, default=1, help='images in a pass')
    parser.add_argument(
        '--repeats',
        type=positive,
        default=3,
        help='measured passes; in inference less expensive sizes run up to 4 times as often',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'bf16'),
        default='fp32',
        help='bf16 is autocast, in throughput the type of the weights',
    )
    parser.add_argument('--compile', action='store_true', help='add our model under torch.compile')
    parser.add_argument(
        '--peak-tflops', type=rate, help='stated peak of the device, beside the measured one'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    args = parser.parse_args(argv)
    args.sizes = args.sizes or SIZES[args.mode]
    args.models = args.models or DEFAULT_MODELS[args.mode]
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
            parser.error('--compile belongs to --mode inference and throughput')
        if any(not name.startswith('hivit-') for name in args.models):
            parser.error('--mode pretrain takes hivit-* as --models')
        if find_spec('mmpretrain') is None:
            parser.error('--mode pretrain needs mmpretrain: `python -m itpn_mm doctor` says how')
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    args = parse_args(argv)
    settings = {
        name: getattr(args, name) for name in ('mode', 'models', 'batch', 'device', 'dtype')
    }
    machine = machine_facts(args.device, args.dtype)
    if args.peak_tflops is not None:
        machine['stated_peak_gflops'] = 1000 * args.peak_tflops
    print(', '.join(f'{name} {value}' for name, value in {**settings, **machine}.items()))
    common = dict(
        models=args.models,
        sizes=args.sizes,
        batch=args.batch,
        repeats=args.repeats,
        device=args.device,
        dtype=args.dtype,
    )
    if args.mode == 'pretrain':
        from benchmarks.pretrain import run_pretrain  # needs mmpretrain

        rows = run_pretrain(**common)
    elif args.mode == 'throughput':
        rows = run_throughput(**common, compiled=args.compile)
    else:
        rows = run_inference(**common, compiled=args.compile)
    # the better of two: a rate that other load held down would flatter our share of it
    after = round(gemm_gflops(args.device, args.dtype))
    machine['gemm_gflops'] = max(machine['gemm_gflops'], after)
    print('\n' + markdown(rows, settings, machine))
    for path in write_report(rows, settings, machine, args.out):
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
