"""Table and plot of the digits demo."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from demo_data.digits import FORMS, TEST_FORMS
from matplotlib.figure import Figure
from PIL import Image

from .digits_plan import LABELS, METHODS, STARTS, costs, list_of
from .knn import NEIGHBOURS, accuracy, classify
from .pictures import LINES
from .results import describe_machine
from .values import figure, mean_and_deviation, spread_of

PIXELS = 'pixels'  # in the place of a start: k-NN on the images themselves
Accuracies = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def read_tasks(work: Path, seeds: Sequence[int]) -> dict[str, dict]:
    """The file of every task by its name. Raises FileNotFoundError if one was not run."""
    return {name: json.loads((work / path_of(name)).read_text()) for name in costs(seeds)}


def path_of(name: str) -> str:
    """File of a task, as in `photographs-seed0/knn` -> `photographs/seed0/knn.json`."""
    chain, task = name.split('/')
    start, part = chain.split('-')
    return f'{start}/{task}.json' if part == 'pretrain' else f'{start}/{part}/{task}.json'


def collect(tasks: Mapping[str, dict]) -> dict:
    """Top-1 by method, start and number of labels: a list with a value for each seed."""
    found = {m: {s: {n: [] for n in LABELS} for s in STARTS} for m in METHODS}
    for name, content in tasks.items():
        chain, task = name.split('/')
        method, start = task.partition('-')[0], chain.partition('-')[0]
        if method in METHODS:
            for number, value in content['result'].items():
                found[method][start][number].append(value)
    return found


def classify_pixels(data: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """k-NN on the pixels of the digits in `data`: a list with a value for each seed."""
    queries, classes = read_images(data, 'test', 'meta/test.txt')
    found: dict[str, list[float]] = {}
    for number in LABELS:
        found[number] = []
        for seed in seeds:
            images, labels = read_images(data, 'train', list_of(number, seed))
            found[number].append(accuracy(classify(queries, images, labels), classes))
    return found


def read_images(data: Path, folder: str, listed: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, 4096) of 0..1 and classes (N,) of a list."""
    rows = [line.split() for line in (data / listed).read_text().splitlines()]
    images = np.stack([np.asarray(Image.open(data / folder / name)) for name, _ in rows])
    pixels = torch.from_numpy(images.reshape(len(rows), -1)).float() / 255
    return pixels, torch.tensor([int(label) for _, label in rows])


def summarise(
    found: Accuracies,
    tasks: Mapping[str, dict],
    counts: Mapping[str, int],
    seeds: Sequence[int],
) -> dict:
    """The contents of results.json.

    Args:
        found: Top-1 by method, start and number of labels.
        tasks: The file of every task.
        counts: Images of each split, as the data set's manifest has them.
        seeds: Of the values.
    """
    rows = [
        {
            'method': method,
            'start': start,
            'labels_per_class': number,
            'top1': [round(value, 2) for value in values],
            'mean': round(mean_and_deviation(values)[0], 2),
            'std': round(mean_and_deviation(values)[1], 2),
        }
        for method, starts in found.items()
        for start, numbers in starts.items()
        for number, values in numbers.items()
    ]
    return {
        'rows': rows,
        'seeds': list(seeds),
        'images': dict(counts),
        'split': f'forms {list(TEST_FORMS)} of {len(FORMS)} are the test part, in the order of '
        'the table; a form is in one hand',
        'definitions': {
            'top1': 'percent of the test images, after the last iteration, a value for each seed',
            'std': 'sample standard deviation over the seeds; a seed sets the weights that are not '
            'pre-trained, which images are labelled, and the training; each pre-training was run '
            'once',
            'knn': f'{NEIGHBOURS} nearest by cosine; the features are what the classifier pools',
        },
        'pretrain_loss': {
            name.split('-')[0]: round(task['result']['loss'], 4)
            for name, task in tasks.items()
            if name.endswith('/pretrain')
        },
        'seconds_of_tasks': {name: task['seconds'] for name, task in tasks.items()},
        'machine': describe_machine(used_gpu=False),
    }


def make_table(summary: dict) -> str:
    """The contents of table.md."""
    images = summary['images']
    heads = [
        f'all labels ({images["train_images"]})' if number == 'all' else f'{number} per class'
        for number in LABELS
    ]
    lines = [f'| | start | {" | ".join(heads)} |', '|---|---|' + '---|' * len(heads)]
    rows = {(r['method'], r['start'], r['labels_per_class']): r for r in summary['rows']}
    for method, said in METHODS.items():
        for start in [*STARTS, PIXELS]:
            if (method, start, LABELS[0]) not in rows:
                continue
            cells = [rows[method, start, number] for number in LABELS]
            figures = ' | '.join(figure({**cell, 'values': cell['top1']}) for cell in cells)
            label = STARTS.get(start, 'none: the pixels themselves')
            lines.append(f'| {said} | {label} | {figures} |')
    test = images['test_images']
    lines += [
        '',
        f'Top-1 in percent on {test} images of forms that are not in the training part; '
        f'{spread_of(summary["seeds"])}, after one pre-training each. One image is '
        f'{100 / test:.2f}.',
    ]
    return '\n'.join(lines) + '\n'


def draw(found: Accuracies, path: Path) -> None:
    """Draw top-1 over the number of labels, a panel a method, bars of a standard deviation."""
    figure = Figure(figsize=(13, 4.8), layout='constrained')
    panels = figure.subplots(1, len(found), sharey=True)
    places = range(len(LABELS))
    for axes, (method, starts) in zip(panels, found.items()):
        for i, (start, numbers) in enumerate(starts.items()):
            points = [mean_and_deviation(numbers[number]) for number in LABELS]
            means, deviations = zip(*points)
            label = STARTS.get(start, 'the pixels themselves')
            style = dict(color='grey', linestyle='--') if start == PIXELS else dict(color=LINES[i])
            shift = 0.05 * (i - 1)  # so that bars do not hide each other
            axes.errorbar(
                [place + shift for place in places],
                means,
                deviations,
                marker='o',
                capsize=4,
                label=label,
                **style,
            )
        axes.set_title(METHODS[method])
        axes.set_xticks(places, LABELS)
        axes.set_xlabel('labels per class')
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('top-1 on held-out forms, percent')
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    figure.savefig(path, dpi=100, bbox_inches='tight', pad_inches=0.15)
