"""Classify handwritten digits from random and from pre-trained weights; table and plot.

    bash tools/demo.sh digits [--seeds N] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from demo_run.command import add_seeds, conduct, make_parser, parse, work_folder
from demo_run.digits_plan import SEEDS, STARTS, chain_name, chains, costs, waits_for
from demo_run.parallel import Progress, run_parallel
from demo_run.steps import ROOT, Steps

DATA = ROOT / 'data/demo/digits'


def commands(work: Path, seeds: Sequence[int]) -> dict[str, list[str]]:
    """The command of every chain, by its name."""
    script = [sys.executable, 'tools/demo_digits_chain.py']
    return {
        chain_name(*chain): [*script, *chain, '--work-dir', str(work)] for chain in chains(seeds)
    }


def run(work: Path, seeds: Sequence[int], jobs: int, smoke: bool) -> None:
    """Data, and all chains. Raises StepError."""
    script = ['tools/prepare_demo_data.py', '--only', 'photographs', 'digits']
    Steps(work, total=1).run_always('data', [sys.executable, *script])
    expected = costs(seeds)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    progress, flags = Progress(expected), ['--smoke'] if smoke else []
    waits = {chain_name(*chain): waits_for(*chain) for chain in chains(seeds)}
    # What needs a pre-training comes second. The rest fills the cores that are done with theirs.
    for waiting in (False, True):
        chosen = {
            name: [*command, *flags]
            for name, command in commands(work, seeds).items()
            if bool(waits[name]) == waiting
        }
        run_parallel(chosen, jobs, work / 'logs', progress)


def report(work: Path, seeds: Sequence[int]) -> str:
    """Write results.json, table.md and digits.png into `work`; the table."""
    from demo_run import digits_report  # matplotlib: after what takes minutes is on its way

    tasks = digits_report.read_tasks(work, seeds)
    found = digits_report.collect(tasks)
    found['knn'][digits_report.PIXELS] = digits_report.classify_pixels(DATA, seeds)
    counts = json.loads((DATA / 'manifest.json').read_text())['counts']
    summary = digits_report.summarise(found, tasks, counts, seeds)
    (work / 'results.json').write_text(json.dumps(summary, indent=2) + '\n')
    table = digits_report.make_table(summary)
    (work / 'table.md').write_text(table)
    digits_report.draw(found, work / 'digits.png')
    return table


def forget(work: Path) -> None:
    """Remove what the chains have made."""
    for name in STARTS:
        shutil.rmtree(work / name, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = make_parser(__doc__)
    add_seeds(parser)
    args = parse(parser, arguments)
    work, seeds = work_folder(args, 'digits'), SEEDS[: args.seeds]
    if args.fresh:
        forget(work)

    def steps() -> str:
        run(work, seeds, args.jobs, args.smoke)
        return report(work, seeds)

    return conduct(work, steps)


if __name__ == '__main__':
    sys.exit(main())
