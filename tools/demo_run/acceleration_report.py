"""Table and plot of the acceleration study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import acceleration_speed as speed
from .acceleration_plan import (
    EPOCHS,
    GEOMETRY,
    PARTS,
    SETTING_NAMES,
    TRAINED,
    chain_name,
    costs,
    settings_of,
)
from .pictures import LINES
from .results import METRICS, describe_machine
from .values import describe, figure, spread_of

KINDS = {'bbox_mAP': 'box mAP', 'segm_mAP': 'mask mAP'}


def read_tasks(work: Path, seeds: Sequence[int]) -> dict[str, dict]:
    """The file of every task by its name. Raises FileNotFoundError if one was not run."""
    return {name: json.loads((work / path_of(name)).read_text()) for name in costs(seeds)}


def path_of(name: str) -> str:
    """File of a task, as in `dense-seed0/train` -> `dense/seed0/train.json`."""
    chain, task = name.split('/')
    trained, seed = chain.rsplit('-', 1)
    return f'{trained}/{seed}/{task}.json'


def summarise(
    tasks: Mapping[str, dict], timed: Mapping[str, dict], counts: dict, seeds: Sequence[int]
) -> dict:
    """The contents of results.json.

    Args:
        tasks: The file of every task.
        timed: What `acceleration_speed.measure` returns.
        counts: `images` and `instances` of each of `PARTS`.
        seeds: Of the fine-tunings.
    """

    def values_of(trained: str, setting: str, key: str) -> list[float]:
        names = [f'{chain_name(trained, seed)}/evaluate-{setting}' for seed in seeds]
        return [tasks[name]['result'][key] for name in names]

    rows = []
    for part in PARTS:
        for trained in TRAINED:
            for setting in settings_of(trained):
                row = {'part': part, 'trained': trained, 'evaluated': setting}
                for metric in METRICS:
                    values = values_of(trained, setting, f'{part}_{metric}')
                    dense = values_of('dense', 'dense', f'{part}_{metric}')
                    row[metric] = describe(values)
                    differences = [value - other for value, other in zip(values, dense)]
                    row[f'{metric}_minus_dense'] = describe(differences)
                rows.append({**row, **speed.summarise(timed, part, setting)})
    return {
        'rows': rows,
        'seeds': list(seeds),
        'epochs': EPOCHS,
        'geometry': GEOMETRY,
        'counts': counts,
        'definitions': {
            'mAP': 'COCO AP at IoU 0.50:0.95 of the last checkpoint, in percent, a value for each '
            'seed; std is the sample standard deviation over the seeds; a seed sets the weights '
            'that are not pre-trained, and the order and flips of the tiles; one pre-training',
            'minus_dense': 'difference to the dense fine-tuning, evaluated dense, of the same seed',
            'images_per_second': 'of the whole detector, from images in memory to boxes and masks, '
            f'one at a time, median of {speed.ROUNDS} rounds in which the settings take turns',
            'speedup': 'over dense, median of the ratios within a round',
        },
        'seconds_of_tasks': {name: task['seconds'] for name, task in tasks.items()},
        'seconds_of_passes': timed,
        'machine': describe_machine(used_gpu=False),
    }


def make_table(summary: dict) -> str:
    """The contents of table.md."""
    lines = []
    for part, label in PARTS.items():
        counts = summary['counts'][part]
        dense = next(row for row in summary['rows'] if row['part'] == part)
        lines += [
            f'### {label[0].upper()}{label[1:]}: {counts["images"]} with {counts["instances"]} '
            'nuclei',
            '',
            '| fine-tuned | evaluated | box mAP | mask mAP | mask mAP, to dense | images/s | '
            'to dense | backbone alone |',
            '|---|---|---|---|---|---|---|---|',
            *(line(row) for row in summary['rows'] if row['part'] == part),
            '',
            f'Of the {1000 / dense["images_per_second"]:.0f} ms that the dense detector takes for '
            f'an image, {dense["backbone_ms"]:.0f} are the backbone.',
            '',
        ]
    nuclei = summary['counts']['tiles']['instances']
    lines += [
        f'{spread_of(summary["seeds"]).capitalize()}, {summary["epochs"]} epochs each, after one '
        'pre-training; "to dense" is the difference within a seed. One nucleus '
        f'of {nuclei} is {100 / nuclei:.1f} % of the recall. Windows of 4 x 4 tokens; tokens leave '
        'at every layer. A dense checkpoint has no gathering parameters: their scales are 0, so '
        '`gathering` is then exactly `windows`, and `all` is windows with 20 % migration. '
        'Two fine-tunings differ by chance: a difference within its spread says nothing. '
        'Images/s: one at a time, with a dense checkpoint; a setting costs the same however it was '
        'fine-tuned, but the time of the detector also depends on how much it finds. At so few '
        'tokens there is nothing to gain in speed; `tools/benchmark.py` measures speed at the '
        'sizes that detectors run at.',
    ]
    return '\n'.join(lines) + '\n'


def line(row: dict) -> str:
    """A row of a table."""
    cells = [figure(row[metric]) for metric in KINDS]
    dense = row['trained'] == row['evaluated'] == 'dense'
    cells.append('' if dense else figure(row['segm_mAP_minus_dense'], '+'))
    cells.append(f'{row["images_per_second"]:.1f}')
    cells += [f'{row[key]:.2f}x' for key in ('speedup', 'backbone_speedup')]
    return f'| {row["trained"]} | {row["evaluated"]} | {" | ".join(cells)} |'


def draw(summary: dict, path: Path) -> None:
    """Draw AP by setting, a row for each of `PARTS`: a point a seed, a bar at their mean; speed."""
    figure = Figure(figsize=(15, 8.4), layout='constrained')
    grid = figure.subplots(len(PARTS), 3, squeeze=False)
    for panels, (part, label) in zip(grid, PARTS.items()):
        rows = [row for row in summary['rows'] if row['part'] == part]
        for axes, (metric, name) in zip(panels, KINDS.items()):
            for i, how in enumerate(('fine-tuned dense', 'fine-tuned with the setting')):
                chosen = [r for r in rows if (r['trained'] == 'dense') == (i == 0)]
                for row in chosen:
                    place = SETTING_NAMES.index(row['evaluated']) + 0.3 * i - 0.15
                    values, mean = row[metric]['values'], row[metric]['mean']
                    axes.plot([place] * len(values), values, 'o', color=LINES[i], alpha=0.55)
                    axes.hlines(mean, place - 0.12, place + 0.12, color=LINES[i], linewidth=2.5)
                axes.plot([], [], '-o', color=LINES[i], label=how)
            finish(axes, f'{name}, {label}', 'percent')
        dense = [row for row in rows if row['trained'] == 'dense']
        for i, (key, name) in enumerate(
            (('speedup', 'whole detector'), ('backbone_speedup', 'backbone alone'))
        ):
            places = [index + 0.36 * i - 0.18 for index in range(len(dense))]
            panels[2].bar(places, [r[key] for r in dense], 0.34, color=LINES[i + 2], label=name)
        panels[2].axhline(1, color='black', linewidth=0.8)
        finish(panels[2], f'speed, {label}', 'times dense')
    (lines, names), (bars, parts) = (
        axes.get_legend_handles_labels() for axes in (grid[0][0], grid[0][2])
    )
    figure.legend([*lines, *bars], [*names, *parts], loc='outside lower center', ncols=4)
    figure.savefig(path, dpi=100, bbox_inches='tight', pad_inches=0.15)


def finish(axes: Axes, title: str, unit: str) -> None:
    """Titles, names of the settings, light lines."""
    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xticks(range(len(SETTING_NAMES)), SETTING_NAMES, rotation=20, ha='right')
    axes.grid(axis='y', alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
