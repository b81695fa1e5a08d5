"""A trained detector or segmentor of any OpenMMLab package, from its config and checkpoint."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from itpn_mm.engine import check_model_fits, load_trained
from itpn_mm.hosts import describe_distributions, is_installed

from .pictures import check_whole, first_line

SCOPES = ('mmdet', 'mmseg', 'mmrotate')
# Transforms of a test pipeline that need the ground truth.
OF_ANNOTATIONS = re.compile(r'Load\w*Annotations')


@dataclass
class Picture:
    """A picture that is ready for the model.

    Args:
        path: Its file.
        image: What the config's loader reads, (H, W, 3) uint8, blue first.
        data: What the config's pipeline makes of it: `inputs` and `data_samples`.
    """

    path: Path
    image: np.ndarray
    data: dict[str, Any]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of what the model sees."""
        return tuple(self.data['inputs'].shape)


class Predictor:
    """A model with its test pipeline and the names of its classes.

    Args:
        cfg: Config of a detector or segmentor.
        checkpoint: File with its weights, all of them.
        device: Where to run it.

    Raises:
        ValueError: The config is of something else, its parts do not fit each other, or the
            checkpoint does not fit the model.
        FileNotFoundError: There is no such checkpoint.
        ModuleNotFoundError: The package of the config is not installed.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: torch.device) -> None:
        scope = cfg.get('default_scope')
        if scope not in SCOPES or 'model' not in cfg:
            raise ValueError(
                f'expected the config of a detector or segmentor, with a `model` and '
                f'`default_scope` one of {SCOPES}, but its scope is {scope!r}'
            )
        if not is_installed(scope):
            raise ModuleNotFoundError(
                f'the config belongs to {scope}, which is not installed; install '
                f'{describe_distributions(scope)}'
            )
        dataset = find_test_dataset(cfg)
        # `init_cfg`s are read by `init_weights`, which nothing here calls.
        init_default_scope(scope)
        model = dict(cfg.model)
        if 'data_preprocessor' in cfg:  # as the Runner does
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        self.model = revert_sync_batchnorm(MODELS.build(model))
        check_model_fits(self.model)
        meta = describe_training(load_trained(self.model, checkpoint))
        self.model.to(device).eval()
        self.names, self.palette = name_classes(self.model, meta, describe_dataset(dataset))
        fusion = getattr(self.model, 'panoptic_fusion_head', None)
        self.num_classes = getattr(fusion, 'num_classes', len(self.names))  # of a panoptic model
        loader, *transforms = (
            step for step in dataset['pipeline'] if not OF_ANNOTATIONS.fullmatch(_type_name(step))
        )
        self.load, self.transform = Compose([loader]), Compose(transforms)

    def prepare(self, path: Path) -> Picture:
        """Read a picture with the config's loader and pipeline.

        Raises:
            ValueError: It cannot be read; the message is the reason.
        """
        check_whole(path)
        try:
            loaded = self.load(dict(img_path=str(path), img_id=0))
            image = drawable(loaded['img'])
            return Picture(path, image, self.transform(loaded))
        except Exception as error:  # loaders and transforms raise what they like
            raise ValueError(f'not a picture that can be read ({first_line(error)})') from error

    @torch.no_grad()
    def predict(self, pictures: Sequence[Picture]) -> list[BaseDataElement]:
        """What the model says of pictures of one `input_shape`, on the CPU."""
        batch = pseudo_collate([picture.data for picture in pictures])
        return [sample.cpu() for sample in self.model.test_step(batch)]


def find_test_dataset(cfg: Config) -> Mapping[str, Any]:
    """Config of the dataset whose pipeline is that of the test, out of its wrappers.

    Raises:
        ValueError: There is none.
    """
    for key in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(key) or {}).get('dataset')
        while isinstance(dataset, Mapping) and not dataset.get('pipeline'):
            dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
        if dataset is not None:
            return dataset
    raise ValueError('the config has no test pipeline (`test_dataloader.dataset.pipeline`)')


def describe_dataset(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The meta information of a dataset, `classes` and `palette`, without reading its data."""
    cls = dataset['type']
    cls = DATASETS.get(cls) if isinstance(cls, str) else cls
    own = getattr(cls, 'METAINFO', {})
    return {**own, **(dataset.get('metainfo') or {})}


def describe_training(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the `meta` of a checkpoint says of its dataset; empty if it says nothing."""
    found = meta.get('dataset_meta', dict(classes=meta.get('CLASSES')))  # the second: mmdet 2
    return {str(k).lower(): v for k, v in found.items()} if isinstance(found, Mapping) else {}


def name_classes(
    model: nn.Module, *metas: Mapping[str, Any]
) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colours of the classes of a model: those of the first that knows them.

    Args:
        model: The model; classes of its heads that nobody names are called `class 7`.
        metas: Descriptions of datasets, with `classes` and `palette`.

    Returns:
        Names and RGB colours, of one length.
    """
    names = next(filter(None, (_names(meta.get('classes')) for meta in metas)), [])
    count = [n for m in model.modules() if isinstance(n := getattr(m, 'num_classes', None), int)]
    names += [f'class {i}' for i in range(len(names), max(count, default=0))]
    palette = next(filter(None, (_colours(meta.get('palette')) for meta in metas)), [])
    palette += [_bright_colour(i) for i in range(len(palette), len(names))]
    return names, palette[: len(names)]


def drawable(image: np.ndarray) -> np.ndarray:
    """A copy of a picture as (H, W, 3) uint8: (H, W) or (H, W, C) of any type as loaders give."""
    image = image if image.ndim == 3 else image[..., None]
    image = image[..., [0, 1, 2] if image.shape[2] >= 3 else [0, 0, 0]]
    if image.dtype == np.uint16:
        image = image >> 8
    return image.clip(0, 255).astype(np.uint8)


def _names(value: Any) -> list[str]:
    value = [value] if isinstance(value, str) else value
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return list(value)
    return []


def _colours(value: Any) -> list[tuple[int, int, int]]:
    """A palette; nothing for a name of one (`'random'`) and what a checkpoint could not keep."""
    if not isinstance(value, (list, tuple)):
        return []
    if not all(isinstance(c, (list, tuple)) and len(c) == 3 for c in value):
        return []
    return [tuple(int(channel) for channel in colour) for colour in value]


def _bright_colour(index: int) -> tuple[int, int, int]:
    """RGB, far from those of the indices before by steps of the golden section in hue."""
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.8, 1))


def _type_name(step: Mapping[str, Any]) -> str:
    cls = step['type']
    return cls.rpartition('.')[2] if isinstance(cls, str) else cls.__name__
