"""What the commands of studies have in common: options, messages, exit statuses."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .parallel import cores
from .steps import ROOT, StepError, clock


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of all studies; the first line of `description` is shown."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument('--compare', action='store_true', help='also from scratch; three seeds')
    parser.add_argument('--fresh', action='store_true', help='start again; data are kept')
    parser.add_argument('--smoke', action='store_true', help='all tasks with next to no training')
    parser.add_argument('--jobs', type=int, default=cores(), help='at a time; default: all cores')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo/STUDY')
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f'--jobs must be at least 1, got {args.jobs}')
    return args


def work_folder(args: argparse.Namespace, study: str) -> Path:
    """Where the results of a study go."""
    default = ROOT / 'work_dirs' / ('demo-smoke' if args.smoke else 'demo') / study
    return (args.work_dir or default).absolute()


def conduct(work: Path, steps: Callable[[], str]) -> int:
    """Run the steps of a study, show the table that they return and the files; the exit status."""
    start = time.monotonic()
    try:
        print(f'\n{steps()}')
    except StepError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo: interrupted; run it again to go on', file=sys.stderr)
        return 130
    shown = work.relative_to(ROOT) if work.is_relative_to(ROOT) else work
    print(f'\n== {clock(time.monotonic() - start)}; results in {shown}')
    for path in sorted(work.glob('*.*')):
        print(f'   {path.name}')
    return 0
