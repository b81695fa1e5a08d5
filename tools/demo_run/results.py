"""Reads what the stock scripts wrote, and sums it up."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Records = Sequence[dict]

METRICS = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
# Under the demo's folder; the first one is the demo's own.
STARTS = {
    'pretrained': 'backbone and pyramid pre-trained',
    'random-pyramid': 'backbone pre-trained, pyramid random',
    'scratch': 'from scratch',
}
PACKAGES = (
    *('torch', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmdetection'),
    *('mmsegmentation', 'mmrotate'),
)


def finetune_folder(work: Path, start: str) -> Path:
    """Work folder of the fine-tuning from a start."""
    return work / 'finetune' if start == 'pretrained' else work / 'compare' / start / 'finetune'


def evaluate_folder(work: Path, start: str) -> Path:
    """Work folder of the evaluation of that fine-tuning."""
    return finetune_folder(work, start).with_name('evaluate')


def step_name(step: str, start: str) -> str:
    """Name of a step of the fine-tuning from a start."""
    return step if start == 'pretrained' else f'compare-{start}-{step}'


def newest(folder: Path, pattern: str) -> Path:
    """The last file that matches, which is of the last run: mmengine names folders by time."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f'{folder}: nothing matches {pattern}; run that step first')
    return paths[-1]


def read_scalars(folder: Path) -> tuple[list[dict], list[dict]]:
    """Logged training iterations, and validations, of the last run in a work folder."""
    lines = newest(folder, '*/vis_data/scalars.json').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r for r in records if 'loss' in r], [r for r in records if 'coco/bbox_mAP' in r]


def read_metrics(folder: Path) -> dict[str, float]:
    """`METRICS` of the last evaluation in a work folder."""
    values = json.loads(newest(folder, '*/*.json').read_text())
    return {name: values[f'coco/{name}'] for name in METRICS}


def loss_names(records: Records) -> list[str]:
    """Names of the losses, the total first."""
    return [name for name in records[0] if name == 'loss' or name.startswith('loss_')]


def first_and_last(records: Records, name: str) -> tuple[float, float]:
    """Mean of a value over the first and the last tenth of the records, at least one each."""
    tenth = max(1, len(records) // 10)
    parts = records[:tenth], records[-tenth:]
    return tuple(round(sum(r[name] for r in part) / len(part), 5) for part in parts)


def read_seconds(work: Path) -> dict[str, float]:
    """Seconds of every step that has a stamp."""
    paths = sorted((work / 'stamps').glob('*.json'))
    return {path.stem: json.loads(path.read_text())['seconds'] for path in paths}


def summarise(work: Path, annotations: dict, compare: bool) -> dict:
    """The contents of summary.json.

    Args:
        work: The demo's folder.
        annotations: COCO document of the held-out tiles.
        compare: Whether the other starts were run too.
    """
    seconds = read_seconds(work)
    setup = seconds.pop('setup', None)
    own = {name: value for name, value in seconds.items() if not name.startswith('compare')}
    pretrain, _ = read_scalars(work / 'pretrain')
    terms = {name: first_and_last(pretrain, name) for name in loss_names(pretrain)}
    summary = {
        'setup_seconds': setup,
        'demo_seconds': round(sum(own.values()), 1),
        'pretrain_loss_first': terms['loss'][0],
        'pretrain_loss_last': terms['loss'][1],
        **read_metrics(evaluate_folder(work, 'pretrained')),
        'seconds': own,
        'pretrain_losses': {
            name: {'first': first, 'last': last} for name, (first, last) in terms.items()
        },
        'pretrain_iterations': pretrain[-1]['step'],
        'val_images': len(annotations['images']),
        'val_instances': len(annotations['annotations']),
    }
    if compare:
        summary['compare'] = {
            start: {
                **read_metrics(evaluate_folder(work, start)),
                'seconds': seconds[step_name('finetune', start)],
            }
            for start in STARTS
        }
    summary['machine'] = describe_machine(used_gpu='memory' in pretrain[-1])
    summary['definitions'] = {
        'setup_seconds': 'tools/setup_env.sh; null if it was not part of the run',
        'demo_seconds': 'sum of `seconds`: all after set-up, without --compare; a step that was '
        'skipped because it was complete counts with the time that it took',
        'pretrain_loss': 'total loss (pixels and features, weighted) as mmengine logs it, each '
        'value a mean over its window of iterations: first is the mean of the first tenth of the '
        'logged values, last of the last tenth',
        'bbox_mAP': 'COCO AP at IoU 0.50:0.95 of the last checkpoint on the held-out region',
    }
    return summary


def compare_table(summary: dict) -> str:
    """The contents of compare.md."""
    return f'# Three starts of the same fine-tuning\n\n{make_table(summary)}'


def make_table(summary: dict) -> str:
    """A row for each start that was run, and what the figures are of."""
    own = {**summary, 'seconds': summary['seconds']['finetune']}
    rows = summary.get('compare', {'pretrained': own})
    lines = [
        '| start | box mAP | box AP50 | mask mAP | mask AP50 | training |',
        '|---|---|---|---|---|---|',
    ]
    for start, row in rows.items():
        values = ' | '.join(f'{row[name]:.3f}' for name in METRICS)
        lines.append(f'| {STARTS[start]} | {values} | {row["seconds"]:.0f} s |')
    images, instances = summary['val_images'], summary['val_instances']
    lines += [
        '',
        f'One run{" each, same seed" if len(rows) > 1 else ""}, last checkpoint, on {images} '
        f'held-out tiles with {instances} instances, so one instance is {1 / instances:.1%} of the '
        'recall. How far another seed would move these figures was not measured'
        + (': read nothing into small differences' if len(rows) > 1 else '')
        + '. The time of the pre-training '
        f'({summary["seconds"]["pretrain"]:.0f} s) is not in the column.',
    ]
    if len(rows) > 1:
        lines.append(
            'Data, schedule and optimiser settings (layer-wise learning-rate decay included) are '
            'the same for all three; only the initial weights differ.'
        )
    return '\n'.join(lines) + '\n'


def describe_machine(used_gpu: bool) -> dict:
    """What the figures were measured on."""
    return {
        'system': platform.platform(),
        'cpu': _cpu_model(),
        'cores': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'omp_num_threads': os.environ.get('OMP_NUM_THREADS'),
        'gpu': _gpu_model() if used_gpu else None,
        'python': platform.python_version(),
        'packages': _versions(),
    }


def _cpu_model() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()


def _gpu_model() -> str:
    try:
        listed = subprocess.run(
            ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader'],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return listed.stdout.splitlines()[0].strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        for distribution in (name, f'onedl-{name}'):
            try:
                found[distribution] = version(distribution)
            except PackageNotFoundError:
                continue
    return found
