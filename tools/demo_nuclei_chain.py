"""A part of the demo on nuclei: the pre-training, or the fine-tuning and what is made of it.

    python tools/demo_nuclei_chain.py PART [--work-dir DIR]

`tools/demo.sh all` runs them beside the parts of other demos. What is complete is not run again.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from demo import PRETRAINED, Demo
from demo_run.command import stop_like_an_interrupt
from demo_run.nuclei_plan import CHAINS
from demo_run.parallel import BEGIN, DONE
from demo_run.steps import StepError


def run(part: str, work: Path, smoke: bool) -> None:
    """Run the tasks of a part in their order. Raises StepError."""
    demo = Demo(work, compare=False, smoke=smoke, total=2 + len(CHAINS[part]))
    demo.prepare()
    steps = {
        'pretrain': demo.pretrain,
        'finetune': partial(demo.finetune, 'pretrained'),
        'reconstruct': demo.reconstruct,
        'report': demo.report,
    }
    for task in CHAINS[part]:
        print(f'{BEGIN}{part}/{task}', flush=True)
        before = demo.steps.executed
        steps[task]()
        said = 'complete' if demo.steps.executed == before else 'done'
        print(f'{DONE}{part}/{task}: {said}', flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=CHAINS)
    parser.add_argument('--work-dir', type=Path, default=PRETRAINED, help='of the demo')
    parser.add_argument('--smoke', action='store_true', help='next to no training')
    args = parser.parse_args(arguments)
    stop_like_an_interrupt()  # its training is a process of its own
    try:
        run(args.part, args.work_dir.absolute(), args.smoke)
    except StepError as error:
        sys.exit(f'demo: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
