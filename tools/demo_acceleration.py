"""Fine-tune the demo's Mask R-CNN dense and accelerated; table and plot of AP and speed.

    bash tools/demo.sh acceleration [--seeds N] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from demo import DATA, last_checkpoint, prepare_study
from demo_data.archives import fetch_all
from demo_data.nuclei import PACKAGE
from demo_run.acceleration_plan import PARTS, SEEDS, TRAINED, chain_name, chains, costs
from demo_run.acceleration_strip import NAME as STRIP
from demo_run.acceleration_strip import write_strip
from demo_run.command import add_seeds, conduct, make_parser, parse, work_folder
from demo_run.parallel import Progress, run_parallel


def prepare(work: Path) -> None:
    """The held-out region as one picture."""
    write_strip(work / STRIP, fetch_all([PACKAGE], DATA.with_name('.archives')))


def commands(work: Path, seeds: Sequence[int]) -> dict[str, list[str]]:
    """The command of every chain, by its name."""
    script = [sys.executable, 'tools/demo_acceleration_chain.py']
    return {
        chain_name(*chain): [*script, *map(str, chain), '--work-dir', str(work)]
        for chain in chains(seeds)
    }


def run(work: Path, seeds: Sequence[int], jobs: int, smoke: bool) -> None:
    """All fine-tunings with their evaluations. Raises StepError."""
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    expected = costs(seeds)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    found = {name: [*command, *flags] for name, command in commands(work, seeds).items()}
    run_parallel(found, jobs, work / 'logs', Progress(expected))


def report(work: Path, seeds: Sequence[int], smoke: bool) -> str:
    """Measure the speed; write results.json, table.md and acceleration.png; the table."""
    from demo_run import acceleration_report, acceleration_speed  # after what takes minutes
    from demo_run.acceleration import Chain

    print('\n== speed', flush=True)
    rounds = 2 if smoke else acceleration_speed.ROUNDS
    timed = acceleration_speed.measure(Chain('dense', 0, work, Path(), smoke), rounds)
    tasks = acceleration_report.read_tasks(work, seeds)
    summary = acceleration_report.summarise(tasks, timed, count(work), seeds)
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


def forget(work: Path) -> None:
    """Remove what the chains have made."""
    for name in TRAINED:
        shutil.rmtree(work / name, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = make_parser(__doc__)
    add_seeds(parser)
    args = parse(parser, arguments)
    work, seeds = work_folder(args, 'acceleration'), SEEDS[: args.seeds]
    if args.fresh:
        forget(work)

    def steps() -> str:
        prepare_study('nuclei', args.smoke)
        prepare(work)
        run(work, seeds, args.jobs, args.smoke)
        return report(work, seeds, args.smoke)

    return conduct(work, steps)


if __name__ == '__main__':
    sys.exit(main())
