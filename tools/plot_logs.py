"""Plot losses, learning rates and scores of several runs.

    python tools/plot_logs.py RUN... [--keys loss lr 'coco/*_mAP'] [--x epoch] [--out logs.png]

A RUN is a work folder of mmpretrain, mmdet, mmseg or mmrotate, or one run's folder or
`scalars.json` in it. Runs of all four packages share a figure, with a panel for each key; and what
was killed and resumed is one line: the folders of a work folder are joined, and where two of them
have been at one iteration, the later one counts. (`analyze_logs.py` of mmdet, mmseg and mmpretrain
plots the files of its own package, one file at a time.)
"""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from inspection.logs import Run, read_run, smooth
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Those that there are: what is trained on, how, and the score that a package's papers name.
DEFAULT_KEYS = (
    'loss',
    'lr',
    'accuracy/top1',
    'coco/bbox_mAP',
    'coco/segm_mAP',
    'coco_panoptic/PQ',
    'mIoU',
    'dota/mAP',
)
COLUMNS, CELL = 3, (4.6, 3.4)  # panels side by side; inches
FAINT = 0.25  # opacity of values under their smoothed curve
COLOURS = style.library['tableau-colorblind10']['axes.prop_cycle']


def choose_keys(runs: Sequence[Run], patterns: Sequence[str] | None) -> list[str]:
    """Keys that the patterns stand for, in their order; `DEFAULT_KEYS` that are there without.

    Raises:
        ValueError: A pattern fits no key of any run, or there is none of the default keys.
    """
    there = sorted({key for run in runs for key in run.curves})
    chosen: dict[str, None] = {}
    for pattern in DEFAULT_KEYS if patterns is None else patterns:
        fitting = [key for key in there if fnmatchcase(key, pattern)]
        if patterns is not None and not fitting:
            raise ValueError(f'`--keys` {pattern} is in no run; there are: {", ".join(there)}')
        chosen |= dict.fromkeys(fitting)
    if not chosen:
        raise ValueError(f'none of the usual keys is there; give `--keys` of: {", ".join(there)}')
    return list(chosen)


def draw(
    runs: Mapping[str, Run], keys: Sequence[str], axis: str = 'iter', weight: float = 0.0
) -> Figure:
    """Draw a panel for each key with a line for each run that has it.

    Args:
        runs: By their labels.
        keys: What to plot.
        axis: `iter` or `epoch`.
        weight: Of the past in the smoothed curves of a training, 0 to 1 (excluded); the values
            themselves are faint then. Learning rates and scores of validations are drawn as they
            are.

    Raises:
        ValueError: A run does not tell its epochs.
    """
    columns = min(len(keys), COLUMNS)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(columns * CELL[0], rows * CELL[1] + 0.4), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    lines = {}
    for axes, key in zip(panels, keys, strict=False):
        for (label, run), look in zip(runs.items(), itertools.cycle(COLOURS)):
            if key not in run.curves:
                continue
            curve = run.curves[key]
            x = run.positions(curve, axis)
            mark = 'o' if curve.is_score or len(x) == 1 else None
            shown = curve.values
            if weight and not curve.is_score and not key.endswith('lr'):
                axes.plot(x, shown, linewidth=1, alpha=FAINT, **look)
                shown = smooth(shown, weight)
            [lines[label]] = axes.plot(x, shown, marker=mark, markersize=4, linewidth=1.6, **look)
        _finish(axes, key, 'iteration' if axis == 'iter' else 'epoch')
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    if len(runs) > 1:
        figure.legend(
            lines.values(), lines, loc='outside lower center', ncols=min(len(lines), 3), fontsize=9
        )
    else:
        figure.suptitle(next(iter(runs)), fontsize=11)
    return figure


def _finish(axes: Axes, key: str, x: str) -> None:
    axes.set_title(key, fontsize=11)
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)


def make_labels(paths: Sequence[Path]) -> list[str]:
    """Short names: paths without the folders that all of them have in common at either end."""
    parts = [path.resolve().parts for path in paths]
    if len(parts) == 1:
        return [paths[0].name or str(paths[0])]
    start, end = _common(parts), _common([p[::-1] for p in parts])
    return [
        '/'.join(p[min(start, len(p) - 1) : max(len(p) - end, start + 1)]) or p[-1] for p in parts
    ]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """Number of items that sequences begin with alike."""
    count = 0
    for items in zip(*parts):
        if len(set(items)) > 1:
            break
        count += 1
    return count


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN')
    parser.add_argument(
        '--keys',
        nargs='+',
        metavar='KEY',
        help=f'what to plot, also patterns such as "loss_*"; by default what is there of: '
        f'{", ".join(DEFAULT_KEYS)}',
    )
    parser.add_argument('--labels', nargs='+', help='of the runs, in their order')
    parser.add_argument('--x', choices=('iter', 'epoch'), default='iter', help='default: iter')
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.0,
        metavar='WEIGHT',
        help='of the past in an exponential mean, such as 0.9 (default: 0, values as they are)',
    )
    parser.add_argument('--out', type=Path, default=Path('logs.png'), help='default: logs.png')
    args = parser.parse_args(arguments)
    if not 0 <= args.smooth < 1:
        parser.error(f'--smooth must be at least 0 and less than 1, but got {args.smooth}')
    if args.labels is None:
        args.labels = make_labels(args.runs)
    if len(args.labels) != len(args.runs) or len(set(args.labels)) != len(args.labels):
        parser.error(
            f'--labels must be {len(args.runs)} different ones for {len(args.runs)} runs, but got '
            f'{args.labels}'
        )
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    args = parse_args(arguments)
    try:
        runs = {label: read_run(path) for label, path in zip(args.labels, args.runs, strict=True)}
        keys = choose_keys(list(runs.values()), args.keys)
        figure = draw(runs, keys, args.x, args.smooth)
    except (OSError, ValueError) as error:
        sys.exit(f'plot_logs.py: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    for label, run in runs.items():
        missing = [key for key in keys if key not in run.curves]
        without = f', without {", ".join(missing)}' if missing else ''
        folders = f'{run.folders} folders' if run.folders > 1 else 'one folder'
        print(f'{label}: {folders}, to iteration {run.last}{without}')
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
