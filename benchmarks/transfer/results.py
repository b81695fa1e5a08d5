"""The rows of the study: where they are kept, and how they are named."""

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .plan import PRETRAININGS, SEEDS, TASKS, Chain

FILE = Path(__file__).with_name('results.json')
PACKAGES = ('torch', 'numpy', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain')
PRETRAIN = 'pretrain'
RANDOM_PYRAMID = '-random-pyramid'


def row_name(chain: Chain, task: str, pyramid: bool = True) -> str:
    """Name of a row: family, pre-training, seed, and what was done."""
    return f'{chain.family}/{chain.pretraining}/seed{chain.seed}/{finetuning_name(task, pyramid)}'


def finetuning_name(task: str, pyramid: bool) -> str:
    """Name of a fine-tuning within its chain."""
    return task if pyramid or task == PRETRAIN else task + RANDOM_PYRAMID


def rows_of(chain: Chain, tasks: Iterable[str]) -> list[str]:
    """Names of the rows of a chain, in their order."""
    names = [row_name(chain, *finetuning) for finetuning in chain.finetunings(tuple(tasks))]
    return names if chain.pretraining == 'none' else [row_name(chain, PRETRAIN), *names]


def read(path: Path = FILE) -> dict[str, Any]:
    """All rows that are committed, by name."""
    return json.loads(path.read_text())['rows'] if path.exists() else {}


def collect(work: Path, path: Path = FILE) -> dict[str, Any]:
    """Add the rows in a work folder to the committed ones; all of them."""
    rows = read(path)
    for file in (work / 'rows').rglob('*.json'):
        rows[file.relative_to(work / 'rows').with_suffix('').as_posix()] = json.loads(
            file.read_text()
        )
    document = dict(
        processor=processor(),
        versions=dict(python=platform.python_version(), **versions()),
        rows=dict(sorted(rows.items())),
    )
    part = path.with_suffix('.part')
    part.write_text(json.dumps(document, indent=1) + '\n')
    os.replace(part, path)
    return rows


def scores(
    rows: dict[str, Any], family: str, pretraining: str, task: str, pyramid: bool = True
) -> dict[int, float]:
    """Scores of a fine-tuning by seed."""
    found = {}
    for seed in SEEDS:
        row = rows.get(row_name(Chain(seed, family, pretraining), task, pyramid))
        if row is not None:
            found[seed] = row['score']
    return found


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError for a name that no row of the plan has."""
    for name in names:
        parts = name.split('/')
        known = len(parts) == 4 and parts[1] in PRETRAININGS
        if not known or parts[3].removesuffix(RANDOM_PYRAMID) not in (PRETRAIN, *TASKS):
            raise ValueError(
                f'no row is called {name!r}; one is {row_name(Chain(0, "itpn", "mim"), "classes")}'
            )


def versions() -> dict[str, str]:
    """Versions of what decides about the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Model of the processor."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0]}, {len(names)} cores' if names else platform.processor()
