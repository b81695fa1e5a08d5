"""Fine-tune detectors on trees in aerial photographs; table, curves and pictures of what they find.

    bash tools/demo.sh detection|rotated [--compare] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

from demo import PRETRAINED, Demo, last_checkpoint
from demo_digits import cores
from demo_run.aerial_plan import STUDIES, chain_name, chains, costs
from demo_run.parallel import Progress, run_parallel
from demo_run.steps import ROOT, StepError, clock


def prepare(study: str, smoke: bool) -> None:
    """Data; and the demo's pre-training unless it was run, or is not needed. Raises StepError."""
    demo = Demo(PRETRAINED, compare=False, smoke=False)
    demo.steps.total = 2
    demo.prepare(STUDIES[study].data)
    if not smoke and not last_checkpoint().exists():
        demo.pretrain()


def run(study: str, work: Path, compare: bool, jobs: int, smoke: bool) -> None:
    """All fine-tunings with their evaluations. Raises StepError."""
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    expected = costs(study, compare)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    script = [sys.executable, 'tools/demo_aerial_chain.py', study]
    commands = {
        chain_name(*chain): [*script, *map(str, chain), '--work-dir', str(work), *flags]
        for chain in chains(study, compare)
    }
    run_parallel(commands, jobs, work / 'logs', Progress(expected))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', choices=STUDIES)
    parser.add_argument('--compare', action='store_true', help='also from scratch; three seeds')
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all tasks with next to no training')
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo/STUDY')
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    default = ROOT / 'work_dirs' / ('demo-smoke' if args.smoke else 'demo') / args.study
    work, start = (args.work_dir or default).absolute(), time.monotonic()
    if args.fresh:
        for name in STUDIES[args.study].detectors:
            shutil.rmtree(work / name, ignore_errors=True)
    try:
        prepare(args.study, args.smoke)
        run(args.study, work, args.compare, args.jobs, args.smoke)
        from demo_run.aerial_report import write_report  # after what takes minutes

        print(f'\n{write_report(args.study, work, args.compare)}')
    except StepError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo: interrupted; run it again to go on', file=sys.stderr)
        return 130
    print(f'\n== {clock(time.monotonic() - start)}; results in {Demo.relative(work)}')
    for path in sorted(work.glob('*.*')):
        print(f'   {path.name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
