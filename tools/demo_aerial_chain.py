"""A part of the demo on aerial photographs: a fine-tuning, and its evaluation.

    python tools/demo_aerial_chain.py STUDY DETECTOR START SEED [--work-dir DIR] [--pretrained FILE]

`tools/demo.sh detection` and `tools/demo.sh rotated` run them. What is complete is not run again.
"""

import argparse
import sys
from pathlib import Path

from demo_run.aerial import Chain
from demo_run.aerial_plan import STUDIES
from demo_run.chains import SEEDS, STARTS
from demo_run.steps import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('detector', choices=[d for s in STUDIES.values() for d in s.detectors])
    parser.add_argument('start', choices=STARTS)
    parser.add_argument('seed', type=int, choices=SEEDS)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo/STUDY')
    parser.add_argument(
        '--pretrained', type=Path, default=Path('work_dirs/demo/pretrain/epoch_24.pth')
    )
    parser.add_argument('--smoke', action='store_true', help='next to no training')
    args = parser.parse_args(arguments)
    if args.detector not in STUDIES[args.study].detectors:
        parser.error(f'{args.study} has no detector {args.detector!r}')
    work = (args.work_dir or ROOT / 'work_dirs/demo' / args.study).absolute()
    chain = (args.detector, args.start, args.seed)
    Chain(args.study, *chain, work, args.pretrained, args.smoke).run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
