"""Fine-tune the demo's Mask R-CNN dense and accelerated; table and plot of AP and speed.

    bash tools/demo_acceleration.sh [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from demo import DATA, PRETRAINED, Demo, last_checkpoint
from demo_data.archives import fetch_all
from demo_data.nuclei import PACKAGE
from demo_run.acceleration_plan import PARTS, TRAINED, chain_name, chains, costs
from demo_run.acceleration_strip import NAME as STRIP
from demo_run.acceleration_strip import write_strip
from demo_run.parallel import Progress, cores, run_parallel
from demo_run.steps import ROOT, StepError, clock


def prepare(work: Path, smoke: bool) -> None:
    """Data; and the demo's pre-training unless it was run, or is not needed. Raises StepError."""
    demo = Demo(PRETRAINED, compare=False, smoke=False)
    demo.steps.total = 2
    demo.prepare()
    if not smoke and not last_checkpoint().exists():
        demo.pretrain()
    write_strip(work / STRIP, fetch_all([PACKAGE], DATA.with_name('.archives')))


def run(work: Path, jobs: int, smoke: bool) -> None:
    """Data, all fine-tunings with their evaluations, report. Raises StepError."""
    prepare(work, smoke)
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    print(f'\n== {len(costs())} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    script = [sys.executable, 'tools/demo_acceleration_chain.py']
    commands = {
        chain_name(trained, seed): [*script, trained, str(seed), '--work-dir', str(work), *flags]
        for trained, seed in chains()
    }
    run_parallel(commands, jobs, work / 'logs', Progress(costs()))


def report(work: Path, smoke: bool) -> str:
    """Measure the speed; write results.json, table.md and acceleration.png; the table."""
    from demo_run import acceleration_report, acceleration_speed  # after what takes minutes
    from demo_run.acceleration import Chain

    print('\n== speed', flush=True)
    rounds = 2 if smoke else acceleration_speed.ROUNDS
    timed = acceleration_speed.measure(Chain('dense', 0, work, Path(), smoke), rounds)
    tasks = acceleration_report.read_tasks(work)
    summary = acceleration_report.summarise(tasks, timed, count(work))
    (work / 'results.json').write_text(json.dumps(summary, indent=2) + '\n')
    table = acceleration_report.make_table(summary)
    (work / 'table.md').write_text(table)
    acceleration_report.draw(summary, work / 'acceleration.png')
    return table


def count(work: Path) -> dict[str, dict[str, int]]:
    """Images and nuclei of each part."""
    paths = {'tiles': DATA / 'nuclei/annotations/val.json', 'strip': work / STRIP / f'{STRIP}.json'}
    counts = {}
    for part in PARTS:
        document = json.loads(paths[part].read_text())
        counts[part] = {
            'images': len(document['images']),
            'instances': len(document['annotations']),
        }
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all tasks with next to no training')
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo-acceleration')
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    default = 'demo-acceleration-smoke' if args.smoke else 'demo-acceleration'
    work, start = (args.work_dir or ROOT / 'work_dirs' / default).absolute(), time.monotonic()
    if args.fresh:
        for name in TRAINED:
            shutil.rmtree(work / name, ignore_errors=True)
    try:
        run(work, args.jobs, args.smoke)
        print(f'\n{report(work, args.smoke)}')
    except StepError as error:
        print(f'demo_acceleration: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo_acceleration: interrupted; run it again to go on', file=sys.stderr)
        return 130
    said = clock(time.monotonic() - start)
    print(f'\n== {said}; results.json, table.md and acceleration.png in {work}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
