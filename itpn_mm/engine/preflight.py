"""Finds early what would stop a run: missing paths, parts that do not fit, images not finite."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from ..registry import HOOKS
from .ema_hook import unwrap
from .load_hook import adapt_checkpoint, prepare_load
from .model_fit import check_model_fits

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


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check that the parts of the model fit before a run, and that images to train on are finite;
    let the run load released checkpoints.

    The model is checked before weights are initialised or loaded, see `check_model_fits`. What is
    then loaded (`load_from`, the checkpoint given to a test script) may be a file of the authors,
    safetensors, of another size or with another head; it is read safely, see `load_hook`. Each
    training batch is checked before it goes to the model; integer images cost nothing.

    Args:
        trust: Leave reading of checkpoints to mmengine, which unpickles what they hold: that can
            run any code.

    Raises:
        ValueError: Two parts do not fit (the message names both and their values), a checkpoint is
            unsafe, damaged or of another architecture, or an image holds NaN or infinity (the
            message names its file).
    """

    priority = 'VERY_HIGH'

    def __init__(self, trust: bool = False) -> None:
        self.trust = trust

    def before_run(self, runner: Runner) -> None:
        """Check the model; called ahead of training, validation and test alike."""
        check_model_fits(unwrap(runner.model))
        if not self.trust:
            prepare_load(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fit what was read to the model; called before the model takes it."""
        adapt_checkpoint(runner, checkpoint)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Check the images of the batch."""
        if isinstance(data_batch, dict):
            check_images_finite(data_batch, batch_idx)


def check_images_finite(data_batch: dict, batch_idx: int) -> None:
    """Raise ValueError naming the image if a floating-point one of `data_batch` is not finite.

    Args:
        data_batch: `inputs`, images (C, H, W), stacked or in lists that may be nested by view, and
            maybe `data_samples`, a sequence with an `img_path` each.
        batch_idx: Index of the batch for the message.
    """
    for index, image in _iter_images(data_batch.get('inputs')):
        if not image.is_floating_point() or not image.numel():
            continue
        # One pass without a temporary of the image's size; NaN goes through to both ends.
        if torch.stack(torch.aminmax(image)).isfinite().all():
            continue
        raise ValueError(
            f'image {index} of training batch {batch_idx}{_describe(data_batch, index)} holds NaN '
            'or infinite values; repair or remove it, or correct the transform that made them'
        )


def _iter_images(inputs: Any, index: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yield the images in `inputs` with their index among the samples of the batch."""
    if isinstance(inputs, Tensor) and inputs.ndim <= 3:
        yield index, inputs
    elif isinstance(inputs, (Tensor, list, tuple)):
        for i, member in enumerate(inputs):
            yield from _iter_images(member, i)
    elif isinstance(inputs, dict):
        for member in inputs.values():
            yield from _iter_images(member)


def _describe(data_batch: dict, index: int) -> str:
    samples = data_batch.get('data_samples')
    if isinstance(samples, (list, tuple)) and index < len(samples):
        path = getattr(samples[index], 'img_path', None)
        if path is not None:
            return f' ({path})'
    return ''


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
