"""A part of the digits demo: a pre-training, or k-NN, linear probes and fine-tunings of a seed.

    python tools/demo_digits_chain.py START PART [--work-dir DIR]

`tools/demo.sh digits` runs all of them. Tasks that are complete are not run again.
"""

import argparse
import sys
from pathlib import Path

from demo_run.digits import Chain
from demo_run.digits_plan import SEEDS, STARTS, chains
from demo_run.steps import ROOT


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('start', choices=STARTS)
    parser.add_argument('part', choices=['pretrain', *(f'seed{seed}' for seed in SEEDS)])
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo/digits')
    parser.add_argument('--smoke', action='store_true', help='next to no training')
    args = parser.parse_args(arguments)
    if (args.start, args.part) not in chains():
        parser.error(f'{args.start!r} has no pre-training')
    Chain(args.start, args.part, args.work_dir.absolute(), args.smoke).run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
