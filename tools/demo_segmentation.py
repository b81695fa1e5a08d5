"""Fine-tune segmentors on nuclei; table, curves and overlays.

    bash tools/demo.sh segmentation [--compare] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import shutil
import sys
from pathlib import Path

from demo import last_checkpoint, prepare_study
from demo_run.chains import chain_name
from demo_run.command import add_compare, conduct, make_parser, parse, work_folder
from demo_run.parallel import Progress, run_parallel
from demo_run.segmentation_plan import MODELS, chains, costs


def commands(work: Path, compare: bool) -> dict[str, list[str]]:
    """The command of every chain, by its name."""
    script = [sys.executable, 'tools/demo_segmentation_chain.py']
    return {
        chain_name(*chain): [*script, *map(str, chain), '--work-dir', str(work)]
        for chain in chains(compare)
    }


def run(work: Path, compare: bool, jobs: int, smoke: bool) -> None:
    """All fine-tunings with their evaluations. Raises StepError."""
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    expected = costs(compare)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    found = {name: [*command, *flags] for name, command in commands(work, compare).items()}
    run_parallel(found, jobs, work / 'logs', Progress(expected))


def forget(work: Path) -> None:
    """Remove what the chains have made."""
    for name in MODELS:
        shutil.rmtree(work / name, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = make_parser(__doc__)
    add_compare(parser)
    args = parse(parser, arguments)
    work = work_folder(args, 'segmentation')
    if args.fresh:
        forget(work)

    def steps() -> str:
        prepare_study('nuclei_semantic', args.smoke)
        run(work, args.compare, args.jobs, args.smoke)
        from demo_run.segmentation_report import write_report  # after what takes minutes

        return write_report(work, args.compare)

    return conduct(work, steps)


if __name__ == '__main__':
    sys.exit(main())
