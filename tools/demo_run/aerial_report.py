"""Sums up the demo on aerial photographs: summary.json, compare.md, curves and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

from .aerial import PREDICTIONS
from .aerial_pictures import draw_curves, draw_tiles, draw_whole
from .aerial_plan import STUDIES, Study, chains
from .aerial_scenes import Scene, read_corners, read_tiles, stitch
from .chains import STARTS, chain_folder, seconds_of
from .results import describe_machine, newest
from .steps import ROOT
from .values import describe, figure

TILES = 6  # that are drawn
MIN_TREES = 5  # in each of them
PHOTOGRAPH = 'held_out'


def write_report(study: str, work: Path, compare: bool) -> str:
    """Write all files of the report into `work`; the table.

    Raises:
        FileNotFoundError: A task was not run.
    """
    plan, data = STUDIES[study], ROOT / 'data/demo' / STUDIES[study].data
    tasks = {chain: read_tasks(work / chain_folder(*chain)) for chain in chains(study, compare)}
    scenes = {
        f'{detector.label} [{detector.threshold}]': read_tiles(
            data,
            work / chain_folder(name, 'pretrained', 0) / f'{PREDICTIONS}.bbox.json',
            detector.threshold,
            plan.oriented,
        )
        for name, detector in plan.detectors.items()
    }
    draw_tiles({label: pick(tiles) for label, tiles in scenes.items()}, work / 'detections.png')
    draw_whole(
        {label: join(plan, data, tiles) for label, tiles in scenes.items()},
        work / 'photograph.png',
    )
    draw_curves(read_curves(plan, work, tasks), next(iter(plan.metrics)), work / 'curves.png')
    first = next(iter(scenes.values()))
    counts = {'tiles': len(first), 'trees': sum(len(tile.trees) for tile in first)}
    summary = summarise(plan, tasks, counts)
    (work / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    table, path = make_table(plan, summary), work / 'compare.md'
    if compare:
        path.write_text(table)
    else:
        path.unlink(missing_ok=True)  # of runs that this report does not cover
    return table


def read_tasks(folder: Path) -> dict[str, dict]:
    """The files of the tasks of a chain."""
    return {
        task: json.loads((folder / f'{task}.json').read_text()) for task in ('train', 'evaluate')
    }


def pick(tiles: list[Scene]) -> list[Scene]:
    """A few tiles with trees, from all over the photograph."""
    full = [tile for tile in tiles if len(tile.trees) >= MIN_TREES]
    return [full[round((i + 0.5) * len(full) / TILES - 0.5)] for i in range(TILES)]


def join(plan: Study, data: Path, tiles: list[Scene]) -> Scene:
    """The whole photograph; patches in DOTA's format overlap, so its own list of trees counts."""
    if not plan.oriented:
        return stitch(tiles)
    [path] = (data / 'raw/val/labelTxt').glob(f'{PHOTOGRAPH}_*.txt')
    return stitch(tiles, read_corners(path))


def read_curves(plan: Study, work: Path, tasks: Mapping[tuple[str, str, int], dict]) -> dict:
    """Logged iterations and validations of each seed by detector and start."""
    metric, found = next(iter(plan.metrics)), {}
    for detector, start, seed in tasks:
        folder = work / chain_folder(detector, start, seed) / 'train'
        lines = newest(folder, '*/vis_data/scalars.json').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        label = f'{plan.detectors[detector].label}, {STARTS[start]}'
        found.setdefault(label, []).append(
            ([r for r in records if 'loss' in r], [r for r in records if metric in r])
        )
    return found


def summarise(plan: Study, tasks: Mapping[tuple[str, str, int], dict], counts: dict) -> dict:
    """The contents of summary.json.

    Args:
        plan: The study.
        tasks: The files of both tasks by detector, start and seed.
        counts: `tiles` and `trees` that were evaluated on.
    """

    def values(detector: str, start: str, metric: str) -> list[float]:
        return [
            task['evaluate']['result'][metric]
            for (name, began, _), task in tasks.items()
            if (name, began) == (detector, start)
        ]

    rows, differences = [], []
    metrics = list(plan.metrics.values())
    for detector in plan.detectors:
        starts = [start for start in STARTS if values(detector, start, metrics[0])]
        for start in starts:
            seconds = [
                task['train']['seconds']
                for (name, began, _), task in tasks.items()
                if (name, began) == (detector, start)
            ]
            cells = {metric: describe(values(detector, start, metric)) for metric in metrics}
            row = {'detector': detector, 'start': start, **cells}
            rows.append({**row, 'train_seconds': describe(seconds)})
        if len(starts) == len(STARTS):
            cells = {}
            for metric in metrics:
                pairs = zip(*(values(detector, start, metric) for start in STARTS))
                cells[metric] = describe([ours - theirs for ours, theirs in pairs])
            differences.append({'detector': detector, **cells})
    return {
        'rows': rows,
        'pretrained_minus_scratch': differences,
        'seeds': sorted({seed for _, _, seed in tasks}),
        'counts': counts,
        'seconds_of_tasks': seconds_of(tasks),
        'definitions': {
            'AP': 'COCO AP at IoU 0.50:0.95, AP50 at 0.50, of the last checkpoint on the held-out '
            'photograph, in percent, a value for each seed; std is the sample standard deviation',
            'seed': 'of the weights that are not pre-trained, and of the order and flips of the '
            'tiles; one pre-training',
            'train_seconds': 'of a training with one thread, beside others; with its validations',
        },
        'machine': describe_machine(used_gpu=False),
    }


def make_table(plan: Study, summary: dict) -> str:
    """The contents of compare.md."""
    metrics = list(plan.metrics.values())
    lines = [
        f'| detector | start | {" | ".join(metrics)} | training |',
        '|---|---|' + '---|' * (len(metrics) + 1),
    ]
    for row in summary['rows']:
        cells = ' | '.join(figure(row[metric]) for metric in metrics)
        label, start = plan.detectors[row['detector']].label, STARTS[row['start']]
        lines.append(f'| {label} | {start} | {cells} | {row["train_seconds"]["mean"]:.0f} s |')
    for row in summary['pretrained_minus_scratch']:
        cells = ' | '.join(figure(row[metric], '+') for metric in metrics)
        lines.append(f'| {plan.detectors[row["detector"]].label} | difference | {cells} | |')
    seeds, counts = len(summary['seeds']), summary['counts']
    lines += [
        '',
        f'{counts["tiles"]} tiles of the held-out photograph with {counts["trees"]} boxes of '
        f'trees. Last checkpoint; {seeds} seed{"s" if seeds > 1 else ""}, one pre-training'
        + (', mean ± standard deviation; "difference" is within a seed' if seeds > 1 else '')
        + '. Data, schedule and layer-wise rates are the same for all starts of a detector. The '
        'time of the pre-training is not in the column.',
    ]
    return '\n'.join(lines) + '\n'
