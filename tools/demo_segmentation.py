"""Fine-tune segmentors on nuclei; table, curves and overlays.

    bash tools/demo.sh segmentation [--compare] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import shutil
import sys
from pathlib import Path

from demo import last_checkpoint, prepare_study
from demo_run.chains import chain_name
from demo_run.command import conduct, make_parser, parse, work_folder
from demo_run.parallel import Progress, run_parallel
from demo_run.segmentation_plan import MODELS, chains, costs


def run(work: Path, compare: bool, jobs: int, smoke: bool) -> None:
    """All fine-tunings with their evaluations. Raises StepError."""
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    expected = costs(compare)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    script = [sys.executable, 'tools/demo_segmentation_chain.py']
    commands = {
        chain_name(*chain): [*script, *map(str, chain), '--work-dir', str(work), *flags]
        for chain in chains(compare)
    }
    run_parallel(commands, jobs, work / 'logs', Progress(expected))


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    args = parse(make_parser(__doc__), arguments)
    work = work_folder(args, 'segmentation')
    if args.fresh:
        for name in MODELS:
            shutil.rmtree(work / name, ignore_errors=True)

    def steps() -> str:
        prepare_study('nuclei_semantic', args.smoke)
        run(work, args.compare, args.jobs, args.smoke)
        from demo_run.segmentation_report import write_report  # after what takes minutes

        return write_report(work, args.compare)

    return conduct(work, steps)


if __name__ == '__main__':
    sys.exit(main())
