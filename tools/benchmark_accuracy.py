"""Accuracy and speed of checkpoints beside the paper's figures: a table, a JSON file and a plot.

    python tools/benchmark_accuracy.py 'mask-rcnn_*-1x_coco' --checkpoints FOLDER \\
        --data-root coco=/data/coco
    python tools/benchmark_accuracy.py --task segmentation --checkpoints FOLDER --dry-run
    python tools/benchmark_accuracy.py NAME --checkpoint NAME=FILE --launcher pytorch --processes 8
    PARTITION=gpu python tools/benchmark_accuracy.py --dataset imagenet --checkpoints FOLDER \\
        --launcher slurm --processes 8 --jobs 4

Chooses configs of model-index.yml and runs tools/test.py on each, hence the stock script of its
package. What is missing is told before anything runs. Run again, it goes on where it was: rows that
are done are not repeated unless their config or checkpoint has changed. Ends with 0 if all rows
are done, 1 if a row failed or was left out, 2 if nothing was run. See docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from accuracy.checkpoints import Checkpoints
from accuracy.data import DATA_ROOTS
from accuracy.launchers import KINDS, Launcher
from accuracy.picture import draw
from accuracy.report import make_table, summarise
from accuracy.rows import Row, plan_rows
from accuracy.runs import Runs, write_atomically
from accuracy.zoo import read_index, select
from demo_run.parallel import Progress
from mmengine.config import DictAction

INDEX = Path(__file__).resolve().parents[1] / 'model-index.yml'


def make_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', help='names, or patterns in quotes; default: all')
    parser.add_argument('--task', nargs='+', help='folders of configs/, such as detection')
    parser.add_argument(
        '--dataset', nargs='+', help=f'{", ".join(DATA_ROOTS)}, or the last folder of another'
    )
    parser.add_argument(
        '--checkpoints',
        type=Path,
        metavar='FOLDER',
        help='holds NAME.pth, NAME_anything.pth or the work folder NAME of a training',
    )
    parser.add_argument(
        '--checkpoint',
        nargs='+',
        type=pair,
        default=[],
        metavar='NAME=FILE',
        help='NAME may be a pattern; the first that fits counts, ahead of --checkpoints',
    )
    parser.add_argument(
        '--data-root',
        nargs='+',
        type=pair,
        default=[],
        metavar='DATASET=FOLDER',
        help='where data lie; default: where the configs look for them',
    )
    parser.add_argument('--out', type=Path, default=Path('work_dirs/accuracy'), metavar='FOLDER')
    parser.add_argument('--launcher', choices=KINDS, default='none', help='as of tools/test.py')
    parser.add_argument('--processes', type=positive, default=1, help='one a GPU')
    parser.add_argument('--jobs', type=positive, default=1, help='rows at a time, under Slurm')
    parser.add_argument('--skip-missing', action='store_true', help='run the rows that can be run')
    parser.add_argument('--dry-run', action='store_true', help='list what would be run')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--model-index', type=Path, default=INDEX)
    return parser


def pair(text: str) -> tuple[str, Path]:
    """`NAME=PATH`."""
    name, sign, path = text.partition('=')
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f'must be NAME=PATH, but got {text!r}')
    return name, Path(path).expanduser().absolute()


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be a whole number of at least 1, but got {text!r}')
    return int(text)


def plan(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Row]:
    """The rows that the command line asks for."""
    if args.launcher == 'none' and args.processes > 1:
        parser.error(f'--processes {args.processes} needs --launcher pytorch or slurm')
    if args.launcher != 'slurm' and args.jobs > 1:
        parser.error(
            f'--jobs {args.jobs} needs --launcher slurm: on one machine, rows beside each '
            'other would slow each other'
        )
    if args.checkpoints and not args.checkpoints.is_dir():
        parser.error(f'--checkpoints: {args.checkpoints} is no folder')
    if not args.model_index.is_file():
        parser.error(f'--model-index: {args.model_index} does not exist')
    try:
        entries = read_index(args.model_index)
        unknown = set(args.task or ()) - {entry.task for entry in entries}
        if unknown:
            raise ValueError(
                f'--task must be of {sorted({e.task for e in entries})}, but got {sorted(unknown)}'
            )
        chosen = select(entries, args.configs, args.task)
        options = parse_options(args.cfg_options)
    except ValueError as error:
        parser.error(str(error))
    folder = args.checkpoints.absolute() if args.checkpoints else None
    checkpoints = Checkpoints(args.checkpoint, folder, [entry.name for entry in entries])
    rows = plan_rows(chosen, args.dataset, dict(args.data_root), checkpoints, options)
    found = {row.dataset for row in rows}
    for option, names in (('--dataset', args.dataset or ()), ('--data-root', dict(args.data_root))):
        unknown = [name for name in names if name not in found | DATA_ROOTS.keys()]
        if unknown:
            parser.error(
                f'{option}: no chosen config is of the data set {unknown[0]!r}; there '
                f'are {", ".join(sorted({*found, *DATA_ROOTS} - {""}))}'
            )
    if not rows:
        parser.error('none of these configs has test data')
    return rows


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Values of `KEY=VALUE`, as the stock scripts read them. Raises ValueError."""
    for option in options:
        if '=' not in option:
            raise ValueError(f'--cfg-options must be KEY=VALUE, but got {option!r}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *options] if options else []).cfg_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; the exit status."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    rows = plan(parser, args)
    out = args.out.absolute()
    ready = [row for row in rows if not row.problems]
    launcher = Launcher(args.launcher, args.processes)
    runs = Runs(out, launcher, args.cfg_options, Progress({row.entry.name: 1.0 for row in ready}))
    missing = [f'{row.entry.name}: {text}' for row in rows for text in row.problems]
    if args.dry_run:
        show(rows, runs)
    for line in missing:
        print(f'missing: {line}', file=sys.stderr)
    if missing and (not args.skip_missing or not ready):
        print(
            f'{len(rows) - len(ready)} of {len(rows)} rows miss something; nothing was run'
            + ('; --skip-missing runs the others' if ready else ''),
            file=sys.stderr,
        )
        return 2
    if args.dry_run:
        return 0

    def report() -> dict:
        summary = summarise(rows, [runs.state(row) for row in rows])
        write_atomically(out / 'accuracy.json', json.dumps(summary, indent=1) + '\n')
        write_atomically(out / 'accuracy.md', make_table(summary))
        return summary

    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        runs.run_all(ready, args.jobs, report)
    except KeyboardInterrupt:
        print('\ninterrupted; run it again to go on', file=sys.stderr)
        return 130
    finally:
        summary = report()
    drawn = draw(summary, out / 'accuracy.png')
    print(f'\n{make_table(summary)}')
    print('\n'.join(str(out / f'accuracy.{kind}') for kind in ['md', 'json', *['png'] * drawn]))
    return int(any(row['status'] != 'done' for row in summary['rows']))


def show(rows: Sequence[Row], runs: Runs) -> None:
    """List the rows: checkpoint, data, state and command."""
    for row in rows:
        state = 'missing' if row.problems else runs.state(row).get('status', 'to run')
        print(f'{row.entry.name}: {state}')
        print(f'    checkpoint: {row.checkpoint or "-"}')
        print(f'    data: {row.dataset}, {row.root or "-"} ({row.part})')
        if not row.problems:
            print(f'    {shlex.join(runs.command(row))}')


if __name__ == '__main__':
    sys.exit(main())
