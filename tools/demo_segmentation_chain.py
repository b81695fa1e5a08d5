"""A part of the demo of segmentation: a fine-tuning, and its evaluation.

    python tools/demo_segmentation_chain.py MODEL START SEED [--work-dir DIR] [--pretrained FILE]

`tools/demo.sh segmentation` runs them. What is complete is not run again.
"""

import argparse
import sys
from pathlib import Path

from demo_run.chains import SEEDS, STARTS
from demo_run.segmentation import Chain
from demo_run.segmentation_plan import MODELS
from demo_run.steps import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', choices=MODELS)
    parser.add_argument('start', choices=STARTS)
    parser.add_argument('seed', type=int, choices=SEEDS)
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/demo/segmentation', help='of the demo'
    )
    parser.add_argument(
        '--pretrained', type=Path, default=Path('work_dirs/demo/pretrain/epoch_24.pth')
    )
    parser.add_argument('--smoke', action='store_true', help='next to no training')
    args = parser.parse_args(arguments)
    work = args.work_dir.absolute()
    Chain(args.model, args.start, args.seed, work, args.pretrained, args.smoke).run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
