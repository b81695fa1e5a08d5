"""Fine-tune detectors on trees in aerial photographs; table, curves and pictures of what they find.

    bash tools/demo.sh detection|rotated [--compare] [--fresh] [--smoke] [--jobs N] [--work-dir DIR]

sets up the environment and runs this; see there.
"""

import shutil
import sys
from pathlib import Path

from demo import last_checkpoint, prepare_study
from demo_run.aerial_plan import STUDIES, chains, costs
from demo_run.chains import chain_name
from demo_run.command import add_compare, conduct, make_parser, parse, work_folder
from demo_run.parallel import Progress, run_parallel


def commands(study: str, work: Path, compare: bool) -> dict[str, list[str]]:
    """The command of every chain, by its name."""
    script = [sys.executable, 'tools/demo_aerial_chain.py', study]
    return {
        chain_name(*chain): [*script, *map(str, chain), '--work-dir', str(work)]
        for chain in chains(study, compare)
    }


def run(study: str, work: Path, compare: bool, jobs: int, smoke: bool) -> None:
    """All fine-tunings with their evaluations. Raises StepError."""
    flags = ['--smoke'] if smoke else ['--pretrained', last_checkpoint().read_text().strip()]
    expected = costs(study, compare)
    print(f'\n== {len(expected)} tasks, {jobs} at a time; logs: {work / "logs"}', flush=True)
    found = {name: [*command, *flags] for name, command in commands(study, work, compare).items()}
    run_parallel(found, jobs, work / 'logs', Progress(expected))


def forget(study: str, work: Path) -> None:
    """Remove what the chains have made."""
    for name in STUDIES[study].detectors:
        shutil.rmtree(work / name, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = make_parser(__doc__)
    add_compare(parser)
    parser.add_argument('study', choices=STUDIES)
    args = parse(parser, arguments)
    work = work_folder(args, args.study)
    if args.fresh:
        forget(args.study, work)

    def steps() -> str:
        prepare_study(STUDIES[args.study].data, args.smoke)
        run(args.study, work, args.compare, args.jobs, args.smoke)
        from demo_run.aerial_report import write_report  # after what takes minutes

        return write_report(args.study, work, args.compare)

    return conduct(work, steps)


if __name__ == '__main__':
    sys.exit(main())
