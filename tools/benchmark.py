"""Speed, memory and arithmetic of the shipped models, dense and accelerated, against a plain
implementation and against backbones of other projects.

    python tools/benchmark.py --models fastitpn-base --sizes 800x1280 --repeats 5 \\
        --settings dense migration-10 migration-20 migration-30 migration-40 windows gathering \\
        gathering-hrpe all
    python tools/benchmark.py --models hivit-base fastitpn-base --no-pyramid --no-plain --peers
    python tools/benchmark.py --train --models fastitpn-base --settings dense windows all
    python tools/benchmark.py --pretrain --device cuda --dtype amp --batch 256
    python tools/benchmark.py --detector mask-rcnn dino --models fastitpn-base --settings all
    python tools/benchmark.py --memory pretrain --models hivit-base --batch 64 256 512 \\
        --dtype amp --checkpointing none all --gib 32 80

Writes a table, a JSON file and a plot into `--out`. `benchmarks/README.md` says what is measured.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for `benchmarks`, which is no part of the installed package

import torch  # noqa: E402

from benchmarks.footprint import CHECKPOINTING, Training  # noqa: E402
from benchmarks.measure import gemm_rates, machine_facts  # noqa: E402
from benchmarks.models import MODELS, SETTINGS, Candidate, arguments_of  # noqa: E402
from benchmarks.passes import run_passes  # noqa: E402
from benchmarks.peers import PEERS  # noqa: E402
from benchmarks.report import markdown, write_report  # noqa: E402
from benchmarks.report_footprint import row_of, table, write_footprints  # noqa: E402

DETECTORS = ('mask-rcnn', 'dino')  # as in benchmarks/detectors.py, which needs mmdet
SIZES = dict(
    inference=[(224, 224), (512, 512), (800, 1280)],
    train=[(512, 512)],
    pretrain=[(224, 224)],
    detector=[(800, 1280)],
    memory=[(800, 1280)],
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


def setting(text: str) -> str:
    """A setting of acceleration."""
    try:
        arguments_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def make_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        '--train',
        dest='mode',
        action='store_const',
        const='train',
        help='forward and backward passes instead of forward passes; no plain formulation',
    )
    modes.add_argument(
        '--pretrain',
        dest='mode',
        action='store_const',
        const='pretrain',
        help='optimiser steps of masked pre-training with its teacher (needs mmpretrain)',
    )
    modes.add_argument(
        '--detector',
        dest='detectors',
        nargs='+',
        choices=DETECTORS,
        metavar='DETECTOR',
        help=f'whole detectors, out of {", ".join(DETECTORS)}, with Swin-B beside (needs mmdet)',
    )
    modes.add_argument(
        '--memory',
        nargs='?',
        const='train',
        choices=('train', 'pretrain'),
        help='predict what a training step takes, of backbone and pyramid (train) or of masked '
        'pre-training with its teacher (needs mmpretrain); on any machine, in seconds',
    )
    parser.add_argument(
        '--checkpointing',
        nargs='+',
        choices=CHECKPOINTING,
        metavar='WHAT',
        default=['none'],
        help=f'with --memory: blocks that are recomputed, out of {", ".join(CHECKPOINTING)}',
    )
    parser.add_argument(
        '--gib',
        nargs='+',
        type=rate,
        default=[],
        help='with --memory: say the largest batch in this memory',
    )
    parser.add_argument(
        '--measure', action='store_true', help='with --memory: also measure the step, on the CPU'
    )
    parser.add_argument(
        '--models',
        nargs='+',
        choices=MODELS,
        metavar='MODEL',
        default=['hivit-base'],
        help=f'out of {", ".join(MODELS)} (test: a very small one); default: hivit-base',
    )
    parser.add_argument(
        '--settings',
        nargs='+',
        type=setting,
        metavar='SETTING',
        default=['dense'],
        help=f'accelerations, out of {", ".join(SETTINGS)}; migration-20@2 takes tokens away '
        'before every second layer; dense is always measured',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        help='default: 224x224 512x512 800x1280, 512x512 for --train, 224x224 for --pretrain',
    )
    parser.add_argument(
        '--batch', nargs='+', type=positive, default=[1], dest='batches', help='images in a pass'
    )
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=('fp32', 'amp', 'bf16'),
        default=['fp32'],
        dest='dtypes',
        help='amp: autocast to bfloat16; bf16: weights and images in bfloat16',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--repeats',
        type=positive,
        default=3,
        help='measured passes; less expensive cases run up to 4 times as often',
    )
    parser.add_argument('--compile', action='store_true', help='add our models under torch.compile')
    parser.add_argument('--no-pyramid', action='store_true', help='backbones alone')
    parser.add_argument('--no-plain', action='store_true', help='leave out the plain formulation')
    parser.add_argument(
        '--peers',
        action='store_true',
        help=f'add those that are installed of {", ".join(PEERS)}; needs --no-pyramid',
    )
    parser.add_argument(
        '--peak-tflops', type=rate, help='stated peak of the device, beside the measured one'
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'))
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The checked command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.mode = args.mode or ('detector' if args.detectors else 'inference')
    if args.memory:
        args.mode = 'memory'
    args.sizes = args.sizes or SIZES['pretrain' if args.memory == 'pretrain' else args.mode]
    args.settings = list(dict.fromkeys(['dense', *args.settings]))
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch finds no GPU here, use --device cpu')
    if find_spec('matplotlib') is None:
        parser.error('the plot needs matplotlib: pip install matplotlib')
    if args.mode == 'detector':
        if args.peers or args.no_pyramid or args.compile:
            parser.error('--detector takes no --peers, --no-pyramid or --compile')
        if 'bf16' in args.dtypes:
            parser.error('--detector takes --dtype fp32 or amp')
        if find_spec('mmdet') is None:
            parser.error('--detector needs mmdet: `python -m itpn_mm doctor` says how')
    if args.peers and not args.no_pyramid:
        parser.error('--peers are backbones, to be compared with ours alone: add --no-pyramid')
    if args.mode == 'memory':
        if args.settings != ['dense'] or args.peers or args.no_pyramid or args.compile:
            parser.error('--memory takes no --settings, --peers, --no-pyramid or --compile')
        if 'bf16' in args.dtypes:
            parser.error('--memory takes --dtype fp32 or amp')
    elif args.checkpointing != ['none'] or args.gib or args.measure:
        parser.error('--checkpointing, --gib and --measure need --memory')
    if 'pretrain' in (args.mode, args.memory):
        check_pretraining(parser, args)
    return args


def check_pretraining(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop at what pre-training does not take."""
    if args.mode == 'pretrain':
        if args.settings != ['dense'] or args.peers or args.no_pyramid or args.compile:
            parser.error('--pretrain takes no --settings, --peers, --no-pyramid or --compile')
        if 'bf16' in args.dtypes or (args.device == 'cpu' and args.dtypes != ['fp32']):
            parser.error('--pretrain takes --dtype fp32, with --device cuda also amp')
    if any(height != width for height, width in args.sizes):
        parser.error('pre-training needs square --sizes')
    if any(not name.startswith('hivit-') for name in args.models):
        parser.error('pre-training takes hivit-* as --models')
    if find_spec('mmpretrain') is None:
        parser.error('pre-training needs mmpretrain: `python -m itpn_mm doctor` says how')


def list_candidates(args: argparse.Namespace) -> list[Candidate]:
    """All that is to be compared, in the order of the table."""
    candidates = []
    for model in args.models:
        if not args.no_plain and args.mode == 'inference':
            candidates.append(Candidate(model, 'plain', not args.no_pyramid))
        for compiled in (False, True) if args.compile else (False,):
            for setting in args.settings:
                candidates.append(Candidate(model, setting, not args.no_pyramid, compiled))
    if args.peers:
        for peer in PEERS:
            candidates.append(Candidate(peer, 'peer', pyramid=False))
            if args.compile:
                candidates.append(Candidate(peer, 'peer', pyramid=False, compiled=True))
    return candidates


def predict_memory(args: argparse.Namespace) -> None:
    """Print the table of predicted memory and write the report."""
    rows = []
    cases = product(args.models, args.sizes, args.dtypes, args.checkpointing, args.batches)
    for model, size, dtype, checkpointing, batch in cases:
        training = Training(model, size, batch, dtype, checkpointing, args.memory == 'pretrain')
        rows.append(row_of(training, args.gib, args.measure))
    print(table(rows))
    for path in write_footprints(rows, machine_facts('cpu'), args.out):
        print(f'wrote {path}')


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    args = parse_args(argv)
    if args.mode == 'memory':
        predict_memory(args)
        return
    settings = dict(
        mode=args.mode,
        models=args.models,
        settings=args.settings,
        pyramid=not args.no_pyramid,
        peers=args.peers,
        device=args.device,
        dtypes=args.dtypes,
    )
    machine = machine_facts(args.device)
    machine['gemm_gflops'] = gemm_rates(args.device, args.dtypes)
    if args.peak_tflops is not None:
        machine['stated_peak_gflops'] = 1000 * args.peak_tflops
    print(', '.join(f'{name} {value}' for name, value in {**settings, **machine}.items()))
    common = dict(
        sizes=args.sizes,
        batches=args.batches,
        dtypes=args.dtypes,
        repeats=args.repeats,
        device=args.device,
    )
    if args.mode == 'pretrain':
        from benchmarks.pretrain import run_pretrain  # needs mmpretrain

        rows = run_pretrain(args.models, **common)
    elif args.mode == 'detector':
        from benchmarks.detectors import list_detectors, run_detectors  # needs mmdet

        rows = run_detectors(list_detectors(args.detectors, args.models, args.settings), **common)
    else:
        rows = run_passes(list_candidates(args), train=args.mode == 'train', **common)
    machine['gemm_gflops'] = gemm_rates(args.device, args.dtypes, machine['gemm_gflops'])
    print('\n' + markdown(rows, settings, machine))
    for path in write_report(rows, settings, machine, args.out):
        print(f'wrote {path}')


if __name__ == '__main__':
    main()
