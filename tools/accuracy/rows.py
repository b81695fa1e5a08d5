"""A row of the table before it runs: its config on your data, its checkpoint, what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from itpn_mm.engine import check_config
from itpn_mm.launch import find_stock_script, read_config

from .checkpoints import Checkpoints
from .data import (
    data_root,
    dataset_name,
    derive_config,
    describe_images,
    describe_part,
    move_data,
)
from .zoo import Entry


@dataclass(frozen=True)
class Row:
    """What is to be run, or why it cannot be.

    Args:
        entry: The config as it is shipped.
        dataset: Name of its data set.
        root: Where that lies.
        checkpoint: What is tested.
        config: Text of the config on your data; empty if the shipped one will do.
        batch: Images of a batch, in each process.
        images: Size at which they are tested, in words.
        part: Of the data set, in words.
        key: Digest of config and checkpoint: a result of another key is none of this row.
        problems: What is missing.
    """

    entry: Entry
    dataset: str = ''
    root: str = ''
    checkpoint: Path | None = None
    config: str = ''
    batch: int = 1
    images: str = ''
    part: str = ''
    key: str = ''
    problems: tuple[str, ...] = ()


def plan_rows(
    entries: Sequence[Entry],
    datasets: Sequence[str] | None,
    roots: Mapping[str, Path],
    checkpoints: Checkpoints,
    options: dict[str, Any],
) -> list[Row]:
    """Read configs and look up all that their tests need; nothing is run or written.

    Args:
        entries: Those that were chosen.
        datasets: Names of data sets to keep; None: all.
        roots: Folders by the name of a data set.
        checkpoints: Where to look for them.
        options: Changes of every config, by key.

    Returns:
        A row for each config that has test data, with what is missing.
    """
    rows = []
    for entry in entries:
        try:
            cfg = read_config([str(entry.config)])
        except (FileNotFoundError, ModuleNotFoundError) as error:
            rows.append(Row(entry, problems=(_one_line(error),)))
            continue
        if not cfg.get('test_dataloader'):
            continue
        dataset = dataset_name(data_root(cfg))
        if datasets is None or dataset in datasets:
            rows.append(_plan(entry, cfg, dataset, roots.get(dataset), checkpoints, options))
    return rows


def _plan(
    entry: Entry,
    cfg: Config,
    dataset: str,
    root: Path | None,
    checkpoints: Checkpoints,
    options: dict[str, Any],
) -> Row:
    changes = move_data(cfg, str(root)) if root else {}
    cfg.merge_from_dict(changes)
    cfg.merge_from_dict(options)
    problems, checkpoint = [], None
    try:
        checkpoint = checkpoints.find(entry.name)
    except ValueError as error:
        problems.append(str(error))
    try:
        find_stock_script(cfg.get('default_scope'), 'test.py')
        if not Path(data_root(cfg)).is_dir():
            raise FileNotFoundError(
                f'no data: the folder {data_root(cfg)} does not exist; --data-root {dataset}=FOLDER'
            )
        check_config(cfg, 'test')
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        problems.append(_one_line(error))
    return Row(
        entry=entry,
        dataset=dataset,
        root=data_root(cfg),
        checkpoint=checkpoint,
        config=derive_config(entry.config, changes) if changes else '',
        batch=cfg.test_dataloader.get('batch_size', 1),
        images=describe_images(cfg),
        part=describe_part(cfg),
        key=_digest(cfg, checkpoint) if checkpoint and not problems else '',
        problems=tuple(problems),
    )


def _digest(cfg: Config, checkpoint: Path) -> str:
    """A number for all that the accuracy depends on, but the code."""
    file = checkpoint.stat()
    text = json.dumps([cfg.to_dict(), str(checkpoint), file.st_size, file.st_mtime_ns], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())
