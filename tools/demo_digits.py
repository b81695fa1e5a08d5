"""Classify handwritten digits from random and from pre-trained weights; table and plot.

    bash tools/demo_digits.sh [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from demo_run.digits_plan import PRETRAINED, STARTS, chains, costs
from demo_run.parallel import Progress, cores, run_parallel
from demo_run.steps import ROOT, StepError, Steps, clock

DATA = ROOT / 'data/demo/digits'


def run(work: Path, jobs: int, smoke: bool) -> None:
    """Data, all chains, report. Raises StepError."""
    steps = Steps(work, total=1)
    script = ['tools/prepare_demo_data.py', '--only', 'photographs', 'digits']
    steps.run_always('data', [sys.executable, *script])
    print(f'\n== {len(costs())} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    progress, flags = Progress(costs()), ['--smoke'] if smoke else []
    # What needs a pre-training comes second. The rest fills the cores that are done with theirs.
    for waiting in (False, True):
        commands = {}
        for start, part in chains():
            if (start in PRETRAINED and part != 'pretrain') == waiting:
                command = ['tools/demo_digits_chain.py', start, part, '--work-dir', str(work)]
                commands[f'{start}-{part}'] = [sys.executable, *command, *flags]
        run_parallel(commands, jobs, work / 'logs', progress)


def report(work: Path) -> str:
    """Write results.json, table.md and digits.png into `work`; the table."""
    from demo_run import digits_report  # matplotlib: after what takes minutes is on its way

    tasks = digits_report.read_tasks(work)
    found = digits_report.collect(tasks)
    found['knn'][digits_report.PIXELS] = digits_report.classify_pixels(DATA)
    counts = json.loads((DATA / 'manifest.json').read_text())['counts']
    summary = digits_report.summarise(found, tasks, counts)
    (work / 'results.json').write_text(json.dumps(summary, indent=2) + '\n')
    table = digits_report.make_table(summary)
    (work / 'table.md').write_text(table)
    digits_report.draw(found, work / 'digits.png')
    return table


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all tasks with next to no training')
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo-digits[-smoke]')
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    default = ROOT / 'work_dirs' / ('demo-digits-smoke' if args.smoke else 'demo-digits')
    work, start = (args.work_dir or default).absolute(), time.monotonic()
    if args.fresh:
        for name in STARTS:
            shutil.rmtree(work / name, ignore_errors=True)
    try:
        run(work, args.jobs, args.smoke)
        print(f'\n{report(work)}')
    except StepError as error:
        print(f'demo_digits: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo_digits: interrupted; run it again to go on', file=sys.stderr)
        return 130
    print(
        f'\n== {clock(time.monotonic() - start)}; results.json, table.md and digits.png in {work}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
