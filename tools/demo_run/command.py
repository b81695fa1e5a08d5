"""What the commands of studies have in common: options, messages, exit statuses."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .chains import SEEDS
from .parallel import cores
from .steps import ROOT, StepError, clock

STATUS = 'status.json'  # in the folder of a study: how its last run ended


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of all studies; the first line of `description` is shown."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all tasks with next to no training')
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--work-dir', type=Path, help='default: in work_dirs/demo')
    return parser


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The option of studies that train once unless they compare."""
    parser.add_argument('--compare', action='store_true', help='also from scratch; three seeds')


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """The option of studies that always compare."""
    numbers = range(1, len(SEEDS) + 1)
    parser.add_argument('--seeds', type=int, choices=numbers, default=len(SEEDS), help='how many')


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    return args


def work_folder(args: argparse.Namespace, study: str = '') -> Path:
    """Where the results of a study go."""
    default = ROOT / 'work_dirs' / ('demo-smoke' if args.smoke else 'demo') / study
    return (args.work_dir or default).absolute()


def conduct(work: Path, steps: Callable[[], str]) -> int:
    """Run the steps of a study, show the table that they return and the files; the exit status."""
    start = time.monotonic()
    try:
        print(f'\n{steps()}')
    except StepError as error:
        write_status(work, str(error))
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo: interrupted; run it again to go on', file=sys.stderr)
        return 130
    write_status(work)
    print(f'\n== {clock(time.monotonic() - start)}; results in {relative(work)}')
    for path in sorted(work.glob('*.*')):
        print(f'   {path.name}')
    return 0


def relative(path: Path) -> Path:
    """A path relative to the repository if it lies there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def write_status(work: Path, failed: str | None = None, skipped: str | None = None) -> None:
    """Note how a run ended, for the report of all demos.

    Args:
        work: Folder of the study.
        failed: What went wrong.
        skipped: Why it was not run at all.
    """
    work.mkdir(parents=True, exist_ok=True)
    document = {
        'failed': failed,
        'skipped': skipped,
        'finished': time.strftime('%Y-%m-%d %H:%M:%S'),
    }
    (work / STATUS).write_text(json.dumps(document))


def stop_like_an_interrupt() -> None:
    """Make a polite kill an interrupt: what runs beside ends with it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
