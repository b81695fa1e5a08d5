"""The table: what was measured beside the paper's figures, in Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from demo_run.steps import clock

from .rows import Row

# Metrics by the names of the metafiles: what the stock scripts call them, and what makes percent.
METRICS = {
    'top-1': ('accuracy/top1', 1.0),
    'box AP': ('coco/bbox_mAP', 100.0),
    'mask AP': ('coco/segm_mAP', 100.0),
    'PQ': ('coco_panoptic/PQ', 1.0),
    'mIoU': ('mIoU', 1.0),
    'mAP': ('dota/mAP', 100.0),
}
PAPER_FORM = '.1f'  # the digits that it prints
NOTES = {
    'dota': "The paper's figures of DOTA are of its test server, whose labels are not public. Here "
    'they are of patches with labels, by default of `trainval`, on which the configs train.',
}


@dataclass(frozen=True)
class Figure:
    """A metric of a config in percent; None where there is no value."""

    metric: str
    measured: float | None
    paper: float | None

    @property
    def difference(self) -> float | None:
        """Measured less the paper's."""
        if self.measured is None or self.paper is None:
            return None
        return self.measured - self.paper


def compare(paper: Mapping[str, float], measured: Mapping[str, float | None]) -> list[Figure]:
    """All metrics that were measured, or that the paper has a figure of.

    Args:
        paper: The paper's figures by the names of the metafiles.
        measured: What the stock script wrote.
    """
    found = []
    for metric in [*METRICS, *(name for name in paper if name not in METRICS)]:
        key, factor = METRICS.get(metric, (metric, 1.0))
        value = measured.get(key)
        # COCO's AP is -1 where there is nothing to find.
        known = value is not None and math.isfinite(value) and value >= 0
        if known or metric in paper:
            percent = round(factor * value, 2) if known else None
            found.append(Figure(metric, percent, paper.get(metric)))
    return found


def say(figures: Sequence[Figure]) -> str:
    """Figures in a line."""
    parts = []
    for figure in figures:
        text = f'{figure.metric} {_cell(figure.measured)}'
        if figure.paper is not None:
            difference = _cell(figure.difference, '+.2f')
            text += f' (paper {_cell(figure.paper, PAPER_FORM)}, difference {difference})'
        parts.append(text)
    return ', '.join(parts)


def summarise(rows: Sequence[Row], states: Sequence[dict]) -> dict:
    """The contents of accuracy.json.

    Args:
        rows: As planned.
        states: What is known of each; empty: nothing.
    """
    described = []
    for row, state in zip(rows, states):
        status = state.get('status', 'missing' if row.problems else 'not run')
        described.append(
            {
                'name': row.entry.name,
                'task': row.entry.task,
                'dataset': row.dataset,
                'data_root': row.root,
                'checkpoint': str(row.checkpoint) if row.checkpoint else None,
                'images': row.images,
                'part': row.part,
                'views': 1,
                'status': status,
                'problems': list(row.problems),
                'paper_source': row.entry.source if row.entry.paper else None,
                'figures': [
                    {**asdict(figure), 'difference': figure.difference}
                    for figure in compare(row.entry.paper, state.get('metrics', {}))
                ],
                **{key: value for key, value in state.items() if key != 'key'},
            }
        )
    return {
        'rows': described,
        'definitions': {
            'figures': "in percent; `paper` is the figure of the paper, of the authors' models, "
            'as the metafile has it; `difference` is measured - paper',
            'images_per_second': 'images of all processes by the mean time of a step of the test '
            'as mmengine logs it, loading of images and warm-up included; all batches are taken as '
            'full, so that it is too high for a handful of images',
            'share_of_loading': 'of that time, what a step waited for images',
            'seconds': 'from the start of the command to its end: start-up, test and evaluation',
            'views': 'of an image: no test-time augmentation',
        },
    }


def make_table(summary: dict) -> str:
    """The contents of accuracy.md."""
    rows = summary['rows']
    done = [row for row in rows if row['status'] == 'done']
    lines = ['# Measured beside the paper', '', f'{len(done)} of {len(rows)} rows are done.', '']
    if done:
        lines += [
            '| config | data | metric | measured | **paper** | difference | images/s | time |',
            '|---|---|---|---|---|---|---|---|',
            *(line for row in done for line in _lines(row)),
            '',
        ]
    for row in rows:
        if row['status'] == 'failed':
            lines.append(f'* **failed**: {row["name"]}: {row["error"]} (log: {row["log"]})')
        for problem in row['problems']:
            lines.append(f'* **missing**: {row["name"]}: {problem}')
        if row['status'] == 'not run':
            lines.append(f'* **not run yet**: {row["name"]}')
    lines += ['', '## How it was tested', '']
    if done:
        lines += [
            '| config | images | part of the data | batch x processes | on | checkpoint |',
            '|---|---|---|---|---|---|',
        ]
    for row in done:
        cells = [row['images'], row['part'], f'{row["batch"]} x {row["processes"]}', row['device']]
        lines.append(f'| {row["name"]} | {" | ".join(cells)} | {row["checkpoint"]} |')
    lines += [
        '',
        "In percent. **paper**: of the authors' models, as the metafile has it, not measured "
        'here. The metafile says neither at which size nor with how many views the paper '
        'tested; here each image is seen once, at the size above. images/s: a step of the '
        'test as mmengine logs it, loading and warm-up included; time: of the whole command.',
    ]
    lines += [NOTES[name] for name in NOTES if any(row['dataset'] == name for row in rows)]
    return '\n'.join(lines) + '\n'


def _lines(row: dict) -> list[str]:
    """A line for each metric; what belongs to the whole row stands in the first one."""
    speed = row.get('images_per_second')
    tail = [f'{speed:.3g}' if speed else '-', clock(row['seconds'])]
    lines = []
    for i, figure in enumerate(row['figures']):
        source = f' ({row["paper_source"]})' if figure['paper'] is not None else ''
        cells = [
            *([row['name'], row['dataset']] if i == 0 else ['', '']),
            figure['metric'],
            _cell(figure['measured']),
            _cell(figure['paper'], PAPER_FORM) + source,
            _cell(figure['difference'], '+.2f'),
            *(tail if i == 0 else ['', '']),
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def _cell(value: float | None, form: str = '.2f') -> str:
    return '-' if value is None else f'{round(value, 2) + 0.0:{form}}'
