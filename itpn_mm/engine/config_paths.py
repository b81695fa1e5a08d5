"""Finds files and folders that a config names and that are not there, before anything is built."""

import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

# What a run of each kind reads; initial weights are read for training only.
LOADERS = {'train': ('train', 'val'), 'val': ('val',), 'test': ('test',)}
# These fetch their files by themselves unless `download=False`.
DOWNLOADING_DATASETS = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check_config(cfg: Config, mode: str | None = None) -> None:
    """Check that the local files and folders which `cfg` names exist; build nothing.

    Looked at are `data_root`, `ann_file` and `data_prefix` of the datasets, inside wrappers too and
    joined as the OpenMMLab datasets join them; `ann_file` of the evaluators; `init_cfg.checkpoint`
    of the model; and `load_from`. Addresses such as `https://` and datasets on another storage
    backend are left to those who open them.

    Args:
        cfg: A whole config, as handed to the Runner.
        mode: 'train', 'val' or 'test': look at what such a run reads; None: at everything.

    Raises:
        FileNotFoundError: Something does not exist; the message names the config key, the value
            and the remedy.
        ValueError: A path is not a string, or `mode` is unknown.
    """
    if mode is not None and mode not in LOADERS:
        raise ValueError(f'`mode` must be None or one of {tuple(LOADERS)}, but got {mode!r}')
    for name in ('train', 'val', 'test') if mode is None else LOADERS[mode]:
        loader = cfg.get(f'{name}_dataloader') or {}
        _check_dataset(loader.get('dataset'), f'{name}_dataloader.dataset')
        _check_evaluator(cfg.get(f'{name}_evaluator'), f'{name}_evaluator')
    _check_checkpoint(cfg.get('load_from'), 'load_from')
    if mode in (None, 'train'):
        _check_initial_weights(cfg.get('model'), 'model')


def _check_dataset(dataset: Any, key: str) -> None:
    """Check one dataset config, or those inside a wrapper such as RepeatDataset."""
    if not isinstance(dataset, dict):
        return
    _check_dataset(dataset.get('dataset'), f'{key}.dataset')
    for i, member in enumerate(dataset.get('datasets') or ()):
        _check_dataset(member, f'{key}.datasets.{i}')
    downloads = str(dataset.get('type')).rpartition('.')[2] in DOWNLOADING_DATASETS
    if not _is_local(dataset) or dataset.get('download', downloads):
        return
    root = dataset.get('data_root')
    _check_path(root, f'{key}.data_root')
    ann_file, prefix = dataset.get('ann_file'), dataset.get('data_prefix')
    for i, file in enumerate(ann_file) if isinstance(ann_file, (list, tuple)) else [('', ann_file)]:
        _check_path(file, f'{key}.ann_file.{i}'.rstrip('.'), root)
    for name, value in prefix.items() if isinstance(prefix, dict) else [('', prefix)]:
        _check_path(value, f'{key}.data_prefix.{name}'.rstrip('.'), root)


def _check_evaluator(evaluator: Any, key: str) -> None:
    if isinstance(evaluator, (list, tuple)):
        for i, member in enumerate(evaluator):
            _check_evaluator(member, f'{key}.{i}')
    elif isinstance(evaluator, dict) and _is_local(evaluator):
        _check_path(evaluator.get('ann_file'), f'{key}.ann_file')


def _check_initial_weights(cfg: Any, key: str) -> None:
    """Check `checkpoint` of every `init_cfg` inside the config of a model."""
    if isinstance(cfg, (list, tuple)):
        for i, member in enumerate(cfg):
            _check_initial_weights(member, f'{key}.{i}')
    elif isinstance(cfg, dict):
        if key.rpartition('.')[2] == 'init_cfg' or '.init_cfg.' in key:
            _check_checkpoint(cfg.get('checkpoint'), f'{key}.checkpoint')
        for name, member in cfg.items():
            _check_initial_weights(member, f'{key}.{name}')


def _is_local(cfg: dict) -> bool:
    return (cfg.get('backend_args') or {}).get('backend', 'local') == 'local'


def _check_checkpoint(value: Any, key: str) -> None:
    # mmengine expands `~` for checkpoints, and for nothing else.
    _check_path(os.path.expanduser(value) if isinstance(value, str) else value, key)


def _check_path(value: Any, key: str, root: str | None = None) -> None:
    """Raise if `value`, relative to `root` if there is one, is a local path that does not exist."""
    if value is None or value == '':
        return
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f'`{key}` must be a path, but got {value!r}')
    path = os.path.join(root or '', value)
    if '://' in path or os.path.exists(path):
        return
    remedy = f'put it there or pass `--cfg-options {key}=PATH`'
    if not os.path.isabs(path):
        remedy += f' (the current folder is {Path.cwd()})'
    where = f', that is {path!r}' if path != value else ''
    raise FileNotFoundError(
        f'`{key}` is {os.fspath(value)!r}{where}, which does not exist; {remedy}'
    )
