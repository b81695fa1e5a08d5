"""A part of the acceleration study: a fine-tuning of a seed, and its evaluations.

    python tools/demo_acceleration_chain.py TRAINED SEED [--work-dir DIR] [--pretrained FILE]

`tools/demo.sh acceleration` runs all of them. Tasks that are complete are not run again.
"""

import argparse
import sys
from pathlib import Path

from demo_run.acceleration import Chain
from demo_run.acceleration_plan import SEEDS, TRAINED
from demo_run.steps import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('trained', choices=TRAINED)
    parser.add_argument('seed', type=int, choices=SEEDS)
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo/acceleration')
    parser.add_argument(
        '--pretrained', type=Path, default=Path('work_dirs/demo/pretrain/epoch_24.pth')
    )
    parser.add_argument('--smoke', action='store_true', help='next to no training')
    args = parser.parse_args(arguments)
    work = args.work_dir.absolute()
    Chain(args.trained, args.seed, work, args.pretrained, args.smoke).run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
