"""Reads `model-index.yml`: which configs there are, and the paper's figures of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

PAPER = ' (paper)'  # how a metafile says whose figure it is
UNTESTED = 'pretraining'  # a folder of configs without test data


@dataclass(frozen=True)
class Entry:
    """A config of the index.

    Args:
        name: Of the model, unique.
        config: Its file.
        task: The folder of its metafile: `detection`, `segmentation`, ...
        paper: The paper's figures by metric, in percent; empty if it has none.
        source: Where in the paper they stand.
    """

    name: str
    config: Path
    task: str
    paper: dict[str, float]
    source: str


def read_index(index: Path) -> list[Entry]:
    """Read the models of all metafiles that `index` names, but those of the pre-training.

    Raises:
        ValueError: Two models have the same name, or the file is no index.
    """
    content = yaml.safe_load(index.read_text())
    if not isinstance(content, dict) or not isinstance(content.get('Import'), list):
        raise ValueError(f'{index} must be a model index, with a list `Import` of metafiles')
    entries: dict[str, Entry] = {}
    for metafile in content['Import']:
        task = Path(metafile).parent.name
        if task == UNTESTED:
            continue
        for model in yaml.safe_load((index.parent / metafile).read_text())['Models']:
            if model['Name'] in entries:
                raise ValueError(f'{metafile}: there is a second model {model["Name"]!r}')
            entries[model['Name']] = _read_model(model, index.parent, task)
    return list(entries.values())


def _read_model(model: dict, folder: Path, task: str) -> Entry:
    figures = {
        metric.removesuffix(PAPER): value
        for result in model.get('Results') or ()
        for metric, value in result['Metrics'].items()
        if metric.endswith(PAPER)
    }
    source = (model.get('Metadata') or {}).get('Source of Results', 'paper')
    config = (folder / model['Config']).absolute()
    return Entry(model['Name'], config, task, figures, source.removeprefix('paper, '))


def select(
    entries: Sequence[Entry], patterns: Sequence[str], tasks: Sequence[str] | None
) -> list[Entry]:
    """The entries that a pattern matches, or all without one, of the tasks, or of all.

    Raises:
        ValueError: A pattern matches no name, or no entry of these tasks.
    """
    of_tasks = [entry for entry in entries if tasks is None or entry.task in tasks]
    for pattern in patterns:
        if not any(fnmatchcase(entry.name, pattern) for entry in of_tasks):
            names = [entry.name for entry in of_tasks]
            near = difflib.get_close_matches(pattern, names, 1, cutoff=0.0)
            kind = 'no config with test data' + (f' of {", ".join(tasks)}' if tasks else '')
            hint = f'; the nearest is {near[0]}' if near else ''
            raise ValueError(f'{pattern!r} matches {kind}{hint}')
    if not patterns:
        return of_tasks
    return [e for e in of_tasks if any(fnmatchcase(e.name, pattern) for pattern in patterns)]
