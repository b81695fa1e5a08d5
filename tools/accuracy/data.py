"""Where the data of a config lie, and the same config with other folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

# Roots in the configs, by the names that `--data-root` and `--dataset` take. Any other data set is
# called as the last folder of its root.
DATA_ROOTS = {
    'coco': 'data/coco',
    'ade20k': 'data/ade/ADEChallengeData2016',
    'dota': 'data/split_ss_dota',
    'imagenet': 'data/imagenet',
    'objects365': 'data/Objects365/Obj365_v1',
}
PARTS = ('test_dataloader', 'test_evaluator')


def data_root(cfg: Config) -> str:
    """The root of the test data; empty if the config names none."""
    return (cfg.test_dataloader.dataset.get('data_root') or '').rstrip('/')


def dataset_name(root: str) -> str:
    """Name of the data set with this root in the configs."""
    names = {known: name for name, known in DATA_ROOTS.items()}
    return names.get(root, Path(root).name)


def move_data(cfg: Config, root: str) -> dict[str, Any]:
    """What of a config changes if the test data lie in `root`: paths of data and of evaluators.

    Returns:
        The changes, nested as in the config; a list in which something changes is whole.
    """
    whole = {part: cfg.to_dict()[part] for part in PARTS}
    return _moved(whole, data_root(cfg), root) or {}


def _moved(value: Any, old: str, new: str) -> Any:
    """What changes in `value`; None if nothing does."""
    if isinstance(value, dict):
        changes = {key: _moved(item, old, new) for key, item in value.items()}
        return {key: item for key, item in changes.items() if item is not None} or None
    if isinstance(value, (list, tuple)):
        changes = [_moved(item, old, new) for item in value]
        if all(change is None for change in changes):
            return None
        return [_with(item, change) for item, change in zip(value, changes)]
    if isinstance(value, str) and (value == old or value.startswith(f'{old}/')):
        return new + value[len(old) :]
    return None


def _with(value: Any, change: Any) -> Any:
    """A member of a list, with its change."""
    if change is None:
        return value
    if isinstance(value, dict):
        return {key: _with(item, change.get(key)) for key, item in value.items()}
    return change


def derive_config(config: Path, changes: dict[str, Any]) -> str:
    """Text of a config that is another one but for some values."""
    lines = [f'{key} = {value!r}' for key, value in changes.items()]
    return '\n'.join([f'_base_ = [{str(config)!r}]', *lines]) + '\n'


def describe_images(cfg: Config) -> str:
    """Size at which images are tested, in words."""
    sizes = []
    for step in cfg.test_dataloader.dataset.get('pipeline') or ():
        kind = str(step.get('type')).rpartition('.')[2]
        size = step.get('crop_size' if kind == 'CenterCrop' else 'scale')
        if size is not None and kind in ('Resize', 'ResizeEdge', 'CenterCrop'):
            sizes.append(('crop ' if kind == 'CenterCrop' else '') + _size(size))
    test_cfg = cfg.model.get('test_cfg') or {}
    if test_cfg.get('mode') == 'slide':
        sizes.append(f'windows of {_size(test_cfg["crop_size"])}')
    return ', '.join(sizes) or 'as they are'


def describe_part(cfg: Config) -> str:
    """Which part of the data set is tested: file or folder of labels, or of images, or split."""
    dataset = cfg.test_dataloader.dataset
    prefix = dataset.get('data_prefix') or ''
    folder = next(iter(prefix.values()), '') if isinstance(prefix, dict) else prefix
    return (dataset.get('ann_file') or folder or dataset.get('split') or 'all').rstrip('/')


def _size(value: Any) -> str:
    return ' x '.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
