"""Sums up the demo of segmentation: summary.json, compare.md, curves and overlays."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from .chains import STARTS, chain_folder, seconds_of
from .pictures import by_image
from .results import describe_machine, newest
from .segmentation import DATA, INSTANCE_DATA, PREDICTIONS, TRUTH
from .segmentation_pictures import Curves, Tile, draw_curves, draw_overlays
from .segmentation_plan import CLASSES, MODELS, chains
from .segmentation_scores import majority_ious, read_map, read_maps
from .steps import ROOT
from .values import describe, figure

THRESHOLD = 0.3  # least score of a nucleus that is drawn; short trainings are not sure
PICTURES = 'images/validation'

Files = Mapping[tuple[str, str, int], dict]


def write_report(work: Path, compare: bool) -> str:
    """Write all files of the report into `work`; the table.

    Raises:
        FileNotFoundError: A task was not run.
    """
    tasks = {chain: read_tasks(work / chain_folder(*chain)) for chain in chains(compare)}
    tiles = read_tiles(work)
    [instances] = [model.label for model in MODELS.values() if not model.semantic]
    draw_overlays(tiles, instances, THRESHOLD, work / 'overlays.png')
    draw_curves(read_curves(work, tasks), work / 'curves.png')
    summary = summarise(tasks, tiles)
    (work / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    table, path = make_table(summary), work / 'compare.md'
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


def read_tiles(work: Path) -> list[Tile]:
    """The held-out tiles, with what the first seed of each pre-trained model found."""
    maps, document = {}, json.loads((ROOT / INSTANCE_DATA / 'annotations/val.json').read_text())
    nuclei = found = {}
    for name, model in MODELS.items():
        predictions = work / chain_folder(name, 'pretrained', 0) / PREDICTIONS
        if model.semantic:
            pairs = read_maps(ROOT / DATA / TRUTH, predictions)
            maps[model.label] = {file: predicted for file, (_, predicted) in pairs.items()}
        else:
            results = json.loads(Path(f'{predictions}.segm.json').read_text())
            nuclei, found = by_image(document, results, THRESHOLD)
    tiles = []
    for image in document['images']:
        file = image['file_name']
        picture = np.asarray(Image.open(ROOT / DATA / PICTURES / file).convert('RGB'))
        tiles.append(
            Tile(
                file,
                picture,
                read_map(ROOT / DATA / TRUTH / file),
                {label: of_tiles[file] for label, of_tiles in maps.items()},
                nuclei[image['id']],
                found[image['id']],
            )
        )
    return tiles


def read_curves(work: Path, tasks: Files) -> dict[str, Curves]:
    """What the trainings logged, by label of the model."""
    found: dict[str, Curves] = {}
    for name, start, seed in tasks:
        model = MODELS[name]
        folder = work / chain_folder(name, start, seed) / 'train'
        lines = newest(folder, '*/vis_data/scalars.json').read_text().splitlines()
        records = [json.loads(line) for line in lines]
        curves = found.setdefault(
            model.label,
            Curves(
                {},
                model.metrics[0],
                model.validation,
                model.scale,
                'iteration' if model.semantic else 'epoch',
            ),
        )
        curves.runs.setdefault(STARTS[start], []).append(
            ([r for r in records if 'loss' in r], [r for r in records if model.validation in r])
        )
    return found


def summarise(tasks: Files, tiles: list[Tile]) -> dict:
    """The contents of summary.json.

    Args:
        tasks: The files of both tasks by model, start and seed.
        tiles: What was evaluated on.
    """

    def values(model: str, start: str, metric: str) -> list[float]:
        return [
            task['evaluate']['result'][metric]
            for (name, began, _), task in tasks.items()
            if (name, began) == (model, start)
        ]

    starts = list(dict.fromkeys(start for _, start, _ in tasks))
    rows, differences = [], []
    for name, model in MODELS.items():
        for start in starts:
            cells = {metric: describe(values(name, start, metric)) for metric in model.metrics}
            seconds = [
                task['train']['seconds']
                for (of, began, _), task in tasks.items()
                if (of, began) == (name, start)
            ]
            row = {'model': name, 'start': start, **cells}
            rows.append({**row, 'train_seconds': describe(seconds)})
        if len(starts) == len(STARTS):
            cells = {}
            for metric in model.metrics:
                pairs = zip(*(values(name, start, metric) for start in STARTS), strict=True)
                cells[metric] = describe([ours - theirs for ours, theirs in pairs])
            differences.append({'model': name, **cells})
    majority = majority_ious([tile.truth for tile in tiles], len(CLASSES))
    return {
        'rows': rows,
        'pretrained_minus_scratch': differences,
        'seeds': sorted({seed for _, _, seed in tasks}),
        'counts': {'tiles': len(tiles), 'nuclei': sum(len(tile.nuclei) for tile in tiles)},
        'background_everywhere': {
            'mIoU': round(float(np.mean(majority)), 2),
            **{name: round(value, 2) for name, value in zip(CLASSES, majority, strict=True)},
        },
        'seconds_of_tasks': seconds_of(tasks),
        'definitions': {
            'mIoU': 'mean of the IoU of each class over the pixels of all held-out tiles, in '
            'percent; unlabelled pixels count for nothing',
            'AP': 'COCO AP at IoU 0.50:0.95, AP50 at 0.50, in percent',
            'values': 'of the last checkpoint, one for each seed; std is the sample standard '
            'deviation',
            'seed': 'of the weights that are not pre-trained, and of the order and flips of the '
            'tiles; one pre-training',
            'train_seconds': 'of a training with one thread, beside others; with its validations',
        },
        'machine': describe_machine(used_gpu=False),
    }


def make_table(summary: dict) -> str:
    """The contents of compare.md: a table for each kind of result."""
    lines = []
    for metrics in dict.fromkeys(model.metrics for model in MODELS.values()):
        lines += [
            f'| model | start | {" | ".join(metrics)} | training |',
            '|---|---|' + '---|' * (len(metrics) + 1),
        ]
        for row in summary['rows'] + summary['pretrained_minus_scratch']:
            model = MODELS[row['model']]
            if model.metrics != metrics:
                continue
            difference = 'start' not in row
            start = 'difference' if difference else STARTS[row['start']]
            time = '' if difference else f'{row["train_seconds"]["mean"]:.0f} s '
            cells = ' | '.join(figure(row[name], '+' if difference else '') for name in metrics)
            lines.append(f'| {model.label} | {start} | {cells} | {time}|')
        lines.append('')
    seeds, counts, none = len(summary['seeds']), summary['counts'], summary['background_everywhere']
    lines.append(
        f'{counts["tiles"]} tiles of the held-out region with {counts["nuclei"]} nuclei; percent. '
        f'Background everywhere would have an mIoU of {none["mIoU"]:.1f}. Last checkpoint; '
        f'{seeds} seed{"s" if seeds > 1 else ""}, one pre-training'
        + (', mean ± standard deviation; "difference" is within a seed' if seeds > 1 else '')
        + '. Data, schedule and layer-wise rates are the same for all starts of a model. The time '
        'of the pre-training is not in the column.'
    )
    return '\n'.join(lines) + '\n'
