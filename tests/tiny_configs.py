"""Shrinks a shipped config to seconds on a CPU, with two or four pictures made here.

Widths are divided and never set, so that parts which do not fit each other still do not.
"""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from itpn_mm.backbones import HiViT

from .tiny_segmentation import (
    is_maskdino,
    shrink_maskdino,
    shrink_segmentor,
    shrink_trunk,
    use_segments,
    write_panoptic,
)
from .tiny_teachers import shrink_teacher

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (
    'in_channels',
    'out_channels',
    'stage_channels',
    'feat_channels',
    'channels',
    'conv_out_channels',
    'fc_out_channels',
    'feedforward_channels',
    'num_feats',
)
SIDE = 64  # of pre-training images
# The demo's decoder of 192 has to stay a multiple of 16.
DEMO_DIVISOR, DIVISOR = 4, 16
DISTILL_DIVISOR = 8  # a width of 384 has to stay a multiple of 16
COCO_DIVISOR = 8  # of the sizes in the pipelines
# Queries are 256 wide, and mmcv's deformable attention takes at least 4 channels of a head.
DINO_DIVISOR = 8
# Groups of its norms are 32, one channel each.
MASKDINO_DEMO_DIVISOR = 2
DOTA_DIVISOR = 4  # anchors of stride 16 lie inside the picture, or they would not train
# A picture of acceleration has several windows of this side, of several tokens.
WINDOW, WINDOWS_DIVISOR = 4, 4


@functools.cache
def parse(path: Path) -> Config:
    """A config; to be copied before it is changed. Reading the hosts' bases takes a second."""
    return Config.fromfile(path)


def slow_unless(names: Iterable[str], pattern: str) -> list:
    """Parameters of a test, slow but for the names that `pattern` is found in.

    The others differ from one of these in numbers, which tests without a run look at.
    """
    marks = [[] if re.search(pattern, name) else [pytest.mark.slow] for name in names]
    assert marks.count([]), f'no name has {pattern}'
    return [pytest.param(name, marks=mark) for name, mark in zip(names, marks)]


def shrink(cfg: Config, name: str, work_dir: Path) -> Config:
    """Make `cfg`, of the file `name`, a run of one iteration on tiny data, on the CPU."""
    divisor, whole = DEMO_DIVISOR if 'demo' in name else DIVISOR, cfg.model
    if whole.type == 'itpn_mm.iTPNDistill':
        divisor = DISTILL_DIVISOR
    elif is_maskdino(cfg.model):
        divisor = MASKDINO_DEMO_DIVISOR if 'demo' in name else DINO_DIVISOR
    elif cfg.model.type == 'itpn_mm.DINO' and 'demo' not in name:
        divisor = DINO_DIVISOR
    cfg.model = _shrink_model(cfg.model.to_dict(), divisor)
    full_size = name.endswith(('_coco', '_coco-panoptic', '_objects365v1')) or '_ade20k-' in name
    if is_maskdino(cfg.model):
        shrink_maskdino(cfg.model, divisor)
    if cfg.model.type == 'EncoderDecoder':
        shrink_segmentor(cfg.model, COCO_DIVISOR if full_size else 2)
    accelerated = cfg.model.get('backbone', {}).get('type') == 'itpn_mm.TokenMigration'
    if accelerated:
        _shrink_acceleration(cfg.model.backbone)
    if cfg.model.type == 'itpn_mm.DINO':
        _shrink_dino(cfg.model, divisor)
    box_heads = cfg.model.get('roi_head', {}).get('bbox_head', {})
    for box_head in box_heads if isinstance(box_heads, list) else [box_heads]:  # of Cascade
        if box_head.get('type') == 'Shared4Conv1FCBBoxHead':  # these widths are its defaults
            box_head.update(conv_out_channels=256 // divisor, fc_out_channels=1024 // divisor)
    cfg.merge_from_dict({'model.test_cfg.rcnn.score_thr': 0.0} if 'roi_head' in cfg.model else {})
    if cfg.model.type == 'CascadeRCNN':  # the anchors of stride 16 are larger than a tiny picture
        cfg.model.train_cfg.rpn.allowed_border = -1
        for stage in cfg.model.train_cfg.rcnn:  # three stages of 512 boxes take seconds
            stage.sampler.num = 64
        cfg.model.test_cfg.rcnn.max_per_img = 20

    optim_wrapper = cfg.optim_wrapper
    if optim_wrapper.type == 'AmpOptimWrapper':  # asks for an accelerator
        optim_wrapper.type = 'OptimWrapper'
        optim_wrapper.pop('loss_scale')
    if cfg.model['type'] == 'itpn_mm.iTPNDistill':
        shrink_teacher(cfg, whole, SIDE, work_dir)
        _use_photographs(cfg, work_dir)
    elif cfg.model['type'] == 'ImageClassifier':
        _use_classes(cfg, work_dir)
    elif 'itpn-pixel_hivit' in name and not name.startswith('mask-rcnn'):
        _use_photographs(cfg, work_dir)
    elif cfg.default_scope == 'mmseg':
        use_segments(cfg, work_dir)
        _shrink_loaders(cfg, COCO_DIVISOR if full_size else 1)
    elif cfg.default_scope == 'mmrotate':
        _use_rotated(cfg, work_dir, DOTA_DIVISOR if name.endswith('_dota') else 1)
    else:
        coco_divisor = WINDOWS_DIVISOR if accelerated else COCO_DIVISOR
        _use_instances(cfg, work_dir, coco_divisor if full_size else 1)
    if cfg.train_cfg.get('type') == 'IterBasedTrainLoop':
        cfg.train_cfg.update(max_iters=1, val_interval=1, dynamic_intervals=None)
    else:
        cfg.train_cfg.max_epochs = 1
        cfg.train_cfg.pop('val_interval', None)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{name}_{work_dir.name}'
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=0)
    return cfg


def train(cfg: Config) -> tuple[Runner, dict[str, torch.Tensor]]:
    """Run `cfg` in the stock Runner; also the size of the gradient of each parameter with one."""
    with plain_text():
        return _train(cfg)


def _train(cfg: Config) -> tuple[Runner, dict[str, torch.Tensor]]:
    runner = Runner.from_cfg(cfg)
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in runner.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: gradients.update({name: p.grad.abs().sum()})
            )
    runner.train()
    return runner, gradients


@contextmanager
def plain_text() -> Iterator[None]:
    """Let mmengine write configs as they are: laying them out takes longer than a tiny training."""
    text = property(lambda cfg: ''.join(f'{key} = {value!r}\n' for key, value in cfg.items()))
    with mock.patch.object(Config, 'pretty_text', text):
        yield


def _shrink_model(value: Any, divisor: int, key: str = '') -> Any:
    if isinstance(value, dict):
        if value.get('type') in ('ResNet', 'SwinTransformer'):
            return shrink_trunk(value, divisor)
        return {k: _shrink_model(v, divisor, k) for k, v in value.items()}
    if key == 'arch' and isinstance(value, str):
        return _shrink_model(HiViT.arch_zoo[value], divisor)
    if key == 'img_size':
        return SIDE
    if key == 'drop_path_rate':
        return value / 100  # what is dropped has no gradient, and there is one block of a kind
    if key == 'depths':
        return (1, 1, 1)
    if key == 'num_heads':
        return 2
    if key == 'depth':
        return min(value, 2)
    if key in WIDTHS or key == 'embed_dims':
        if isinstance(value, (list, tuple)):
            return tuple(_divide(v, divisor) for v in value)
        return _divide(value, divisor)
    if isinstance(value, (list, tuple)) and key != 'strides':
        return type(value)(_shrink_model(v, divisor) for v in value)
    return value


def _shrink_acceleration(cfg: dict) -> None:
    """Two attention blocks, so that one is left to be global or not."""
    cfg['backbone']['arch']['depths'] = (1, 1, 2)
    cfg.update(window_size=WINDOW, schedule=dict(every=1))
    if cfg.get('global_layers'):
        cfg['global_layers'] = (1,)


def _shrink_dino(cfg: dict, divisor: int) -> None:
    """Fewer queries than a tiny picture has tokens, and two layers that refine boxes."""
    cfg['num_queries'] = 20
    cfg['bbox_head'].setdefault('embed_dims', 256 // divisor)  # its default
    cfg['encoder']['num_layers'], cfg['decoder']['num_layers'] = 1, 2
    cfg['dn_cfg']['group_cfg']['num_dn_queries'] = 4
    cfg['test_cfg']['max_per_img'] = 10  # also at most the scores there are


def _divide(value: int, divisor: int) -> int:
    assert value % divisor == 0, f'{value} is not a multiple of {divisor}'
    return value // divisor


def _scale_pipeline(value: Any, divisor: int, key: str = '') -> Any:
    """Divide the picture sizes in a pipeline."""
    if isinstance(value, dict):
        return {k: _scale_pipeline(v, divisor, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_scale_pipeline(v, divisor, key) for v in value)
    return value // divisor if key in ('scale', 'scales', 'crop_size') else value


def _replace_root(value: Any, old: str, new: str) -> Any:
    """Replace the folder that paths start with."""
    if isinstance(value, dict):
        return {k: _replace_root(v, old, new) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace_root(v, old, new) for v in value)
    if isinstance(value, str) and value.startswith(old.rstrip('/')):
        return new + value[len(old.rstrip('/')) :]
    return value


def _set_loader(loader: Any, batch_size: int) -> None:
    loader.update(num_workers=0, persistent_workers=False, batch_size=batch_size)


def _use_photographs(cfg: Config, work_dir: Path) -> None:
    """Two pictures in two class folders, as in ImageNet."""
    root = work_dir / 'photographs'
    for i in range(2):
        folder = root / 'train' / f'class{i}'
        folder.mkdir(parents=True)
        draw_picture(96, 80, seed=i).save(folder / 'picture.jpg')
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(root)
    if dataset.type == 'ImageNet':
        dataset.metainfo = dict(classes=['class0', 'class1'])
    for step in dataset.pipeline:
        if step.type == 'RandomResizedCrop':
            step.scale = SIDE
    _set_loader(cfg.train_dataloader, 2)


def _use_classes(cfg: Config, work_dir: Path) -> None:
    """Two classes of two pictures each for training, and for validation where there is one."""
    root, names = work_dir / 'classes', ['class0', 'class1']
    for key, split in (('train_dataloader', 'train'), ('val_dataloader', 'val')):
        for i in range(4):
            path = root / split / names[i % 2] / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(96, 80, seed=i).save(path)
        if cfg[key] is None:
            continue
        dataset = cfg[key].dataset
        # Serialising them collects all garbage of the process, which takes longer than the rest.
        dataset.update(data_root=str(root), metainfo=dict(classes=names), serialize_data=False)
        _scale_to_side(dataset.pipeline)
        _set_loader(cfg[key], 4)
    cfg.test_dataloader = cfg.val_dataloader


def _scale_to_side(pipeline: list[dict]) -> None:
    """Scale the sizes of a classification pipeline so that pictures come out with `SIDE`."""
    for before, step in zip([{}, *pipeline], pipeline):
        if step['type'] == 'RandomResizedCrop':
            step['scale'] = SIDE
        if step['type'] == 'CenterCrop':
            before['scale'] = before['scale'] * SIDE // step['crop_size']
            step['crop_size'] = SIDE


def _use_instances(cfg: Config, work_dir: Path, divisor: int) -> None:
    """Two pictures with instances for training and two for validation, as in COCO."""
    from mmdet.registry import DATASETS

    old = cfg.train_dataloader.dataset.data_root
    root = work_dir / 'instances'
    for loader in ('train_dataloader', 'val_dataloader'):
        part = cfg[loader].dataset
        known = part.get('metainfo', DATASETS.get(part.type).METAINFO)
        ann_file = root / part.ann_file
        if part.type == 'CocoPanopticDataset':
            write_panoptic(root, part, known)
            ann_file = root / part.ann_file.replace('panoptic_', 'instances_')
        write_coco(ann_file, root / part.data_prefix.img, known['classes'])
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset = _replace_root(cfg[key].dataset.to_dict(), old, f'{root}')
    _shrink_loaders(cfg, divisor)
    for key in ('val_evaluator', 'test_evaluator'):
        cfg[key] = _replace_root(cfg[key], old, f'{root}')


def _shrink_loaders(cfg: Config, divisor: int) -> None:
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.pipeline = _scale_pipeline(cfg[key].dataset.pipeline, divisor)
        _set_loader(cfg[key], 2 if key == 'train_dataloader' else 1)


def _use_rotated(cfg: Config, work_dir: Path, divisor: int) -> None:
    """Two pictures with rotated boxes in each folder that is read, as in DOTA."""
    root = work_dir / 'rotated'
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[key].dataset
        classes = dataset.get('metainfo', {}).get('classes', ('plane', 'ship'))
        write_dota(root / dataset.ann_file, root / dataset.data_prefix.img_path, classes)
        dataset.data_root = str(root)
        dataset.pipeline = _scale_pipeline(dataset.pipeline, divisor)
        _set_loader(cfg[key], 2 if key == 'train_dataloader' else 1)
    # A threshold of 0 lets all proposals through, as boxes of each class.
    cfg.merge_from_dict({'model.test_cfg.rpn.max_per_img': 20})


def draw_picture(width: int, height: int, seed: int) -> Image.Image:
    """A smooth picture with some noise."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    noisy = picture + random.normal(0, 8, picture.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_coco(ann_file: Path, folder: Path, classes: tuple[str, ...]) -> None:
    """Two pictures, each with two instances of a class, in COCO's format."""
    width, height = 128, 128
    images, annotations = [], []
    folder.mkdir(parents=True)
    for i in range(2):
        draw_picture(width, height, seed=i).save(folder / f'{i}.jpg')
        images.append(dict(id=i, file_name=f'{i}.jpg', width=width, height=height))
        for x, y, w, h in ((8, 12, 50, 40), (70, 64, 44, 52)):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=1 + i % len(classes),
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def write_dota(annotations: Path, images: Path, classes: tuple[str, ...]) -> None:
    """Two patches, each with two rotated boxes of a class, in DOTA's format."""
    annotations.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        draw_picture(128, 128, seed=i).save(images / f'P{i}__128__0___0.png')
        boxes = ('20 40 60 20 70 40 30 60', '64 90 100 70 110 88 74 108')
        lines = (f'{box} {classes[i % len(classes)]} 0\n' for box in boxes)
        (annotations / f'P{i}__128__0___0.txt').write_text(''.join(lines))
