"""What integral pre-training brings at a size that two cores can rerun: a study on real pictures.

    python tools/benchmark_transfer.py                        # what is missing of all rows
    python tools/benchmark_transfer.py --only 'itpn_mim_*' --tasks classes --minutes 60
    python tools/benchmark_transfer.py --repeat itpn/mim/seed0/classes   # the same numbers again?
    python tools/benchmark_transfer.py --report      # tables and plots of docs/pretraining.md

A row is a training: a pre-training, or a fine-tuning from it. Rows that are in
benchmarks/transfer/results.json are not run again. Interrupted, it goes on where it was; each row
counts as soon as it is complete.
"""

import argparse
import fnmatch
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo_run.parallel import cores  # noqa: E402
from demo_run.steps import StepError  # noqa: E402

from benchmarks.transfer import results  # noqa: E402
from benchmarks.transfer.plan import TASKS, Chain, chains  # noqa: E402


def make_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--only', nargs='+', default=['*'], metavar='PATTERN', help='chains by name'
    )
    parser.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--minutes', type=float, help='begin no row after that')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'transfer')
    parser.add_argument('--list', action='store_true', help='show the chains and what is missing')
    parser.add_argument('--repeat', nargs='+', metavar='ROW', help='run rows again and compare')
    parser.add_argument('--report', action='store_true', help='write tables and plots')
    parser.add_argument('--chain', help=argparse.SUPPRESS)  # what the study starts
    parser.add_argument('--until', type=float, help=argparse.SUPPRESS)
    return parser


def prepare_data() -> None:
    """Folds and teacher."""
    from benchmarks.transfer import configs, folds, teacher

    folds.prepare(configs.DATA, ROOT / 'data' / '.archives')
    teacher.prepare(configs.DATA, ROOT / 'data' / '.archives')


def run_chain(args: argparse.Namespace) -> None:
    """One chain, in this process."""
    import torch

    from benchmarks.transfer import chain as single
    from benchmarks.transfer.study import missing

    torch.set_num_threads(1)
    found = find(args.chain)
    work = args.work_dir.absolute()
    rows = missing(found, tuple(args.tasks), work)
    single.run_chain(found, tuple(args.tasks), rows, work, args.until)


def find(name: str) -> Chain:
    """The chain of a name."""
    return next(chain for chain in chains() if chain.name == name)


def repeat(names: list[str], work: Path) -> int:
    """Run rows again and compare with what is committed; the number of those that differ."""
    from benchmarks.transfer.study import PINNED

    if any(os.environ.get(key) != value for key, value in PINNED.items()):
        # The libraries read these when they are imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PINNED})
    import torch

    from benchmarks.transfer.chain import run_again

    torch.set_num_threads(1)
    committed, wrong = results.read(), 0
    for name in names:
        if name not in committed:
            raise ValueError(f'--repeat: no row {name!r} is committed; see --list')
        differences = run_again(name, committed, work / 'repeat')
        wrong += bool(differences)
        print(f'{name}: {"; ".join(differences) if differences else "equal in every number"}')
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    work = args.work_dir.absolute()
    if args.report:
        from benchmarks.transfer.report import write_all

        for path in write_all(results.read(), ROOT):
            print(path.relative_to(ROOT))
        return 0
    if args.chain:
        run_chain(args)
        return 0
    chosen = [c for c in chains() if any(fnmatch.fnmatch(c.name, p) for p in args.only)]
    if not chosen:
        parser.error(f'--only {" ".join(args.only)}: no chain has such a name; see --list')
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    from benchmarks.transfer import study

    if args.list:
        for chain in chosen:
            rows = results.rows_of(chain, args.tasks)
            left = len(study.missing(chain, tuple(args.tasks), work))
            print(f'{chain.name}: {len(rows)} rows, {left} missing')
        return 0
    prepare_data()
    if args.repeat:
        results.check_names(args.repeat)
        return min(1, repeat(args.repeat, work))
    begin = time.monotonic()
    try:
        study.conduct(chosen, tuple(args.tasks), work, args.jobs, args.minutes)
    except StepError as error:
        print(f'benchmark_transfer: {error}', file=sys.stderr)
        return 1
    finally:
        rows = results.collect(work)
        minutes = (time.monotonic() - begin) / 60
        print(f'{len(rows)} rows in {results.FILE.relative_to(ROOT)} after {minutes:.0f} minutes')
    return 0


if __name__ == '__main__':
    sys.exit(main())
