"""Shrinks segmentors and MaskDINO; writes data sets in the form of ADE20K and of panoptic COCO."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

SEGMENTS = ((8, 12, 50, 40), (70, 64, 44, 52))  # left, top, width, height of 128 x 128 pixels
NUM_QUERIES = 20  # fewer than a tiny picture has tokens


def is_maskdino(model: dict) -> bool:
    """Whether a model, of mmdet or of mmseg, is a MaskDINO."""
    heads = (model.get(name) or {} for name in ('panoptic_head', 'decode_head'))
    return any('MaskDINO' in head.get('type', '') for head in heads)


def shrink_trunk(backbone: dict, divisor: int) -> dict:
    """A ResNet or Swin Transformer with narrow layers, from random weights."""
    backbone = dict(backbone, init_cfg=None)
    if backbone['type'] == 'ResNet':
        width = 64 // divisor
        # without trained weights, a frozen norm of 0 would switch off what comes before it
        return dict(backbone, base_channels=width, stem_channels=width, zero_init_residual=False)
    heads = [heads // backbone['num_heads'][0] for heads in backbone['num_heads']]
    embed_dims = backbone['embed_dims'] // divisor
    return dict(
        backbone, embed_dims=embed_dims, depths=[1] * 4, num_heads=heads, drop_path_rate=0.0
    )


def shrink_maskdino(model: Config, divisor: int) -> None:
    """Fewer queries and layers. Two layers of the decoder are one that refines boxes and the
    last."""
    head = model.panoptic_head if 'panoptic_head' in model else model.decode_head
    for name in ('feat_channels', 'out_channels'):
        head.setdefault(name, 256 // divisor)
    head.update(num_queries=NUM_QUERIES, transformer_decoder=dict(num_layers=2))
    head.transformer_decoder.feedforward_channels = 64
    head.pixel_decoder.num_layers = 1
    head.denoising.num_queries = 4
    (model if 'panoptic_head' in model else head).train_cfg.num_points = 64
    if 'panoptic_head' in model:
        model.test_cfg.max_per_image = 10
        for augment in model.data_preprocessor.get('batch_augments', ()):
            augment['size'] = tuple(side // divisor for side in augment['size'])


def shrink_segmentor(model: Config, divisor: int) -> None:
    """Smaller crops and windows."""
    for part, key in (
        (model.data_preprocessor, 'size'),
        (model.test_cfg, 'crop_size'),
        (model.test_cfg, 'stride'),
    ):
        if key in part:
            part[key] = tuple(side // divisor for side in part[key])


def use_segments(cfg: Config, work_dir: Path) -> None:
    """Two pictures with two classes and pixels of none for training, and two for validation."""
    root = work_dir / 'segments'
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[key].dataset
        prefix = dataset.data_prefix
        write_ade(root / prefix.img_path, root / prefix.seg_map_path)
        dataset.data_root = str(root)
        dataset.update(img_suffix='.png')


def draw_segments() -> np.ndarray:
    """Numbers of segments at each pixel, 0 for none."""
    labels = np.zeros((128, 128), dtype=np.uint8)
    for number, (left, top, width, height) in enumerate(SEGMENTS, start=1):
        labels[top : top + height, left : left + width] = number
    return labels


def write_ade(images: Path, annotations: Path) -> None:
    """Pictures, wider than high, and a class for each pixel, from 1 on."""
    from .tiny_configs import draw_picture

    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        draw_picture(128, 96, seed=i).save(images / f'{i}.png')
        Image.fromarray(draw_segments()[:96]).save(annotations / f'{i}.png')


def write_panoptic(root: Path, dataset: Any, classes: dict[str, tuple[str, ...]]) -> None:
    """One thing and one region of stuff in each of the pictures that are there."""
    names = [*classes['thing_classes'], *classes['stuff_classes']]
    categories = [
        dict(id=i + 1, name=name, isthing=int(name in classes['thing_classes']))
        for i, name in enumerate(names)
    ]
    ids = (1, len(names))
    infos = [
        dict(id=i + 1, category_id=ids[i], bbox=list(box), area=box[2] * box[3], iscrowd=0)
        for i, box in enumerate(SEGMENTS)
    ]
    segments = draw_segments()
    images, annotations = [], []
    (root / dataset.data_prefix.seg).mkdir(parents=True, exist_ok=True)
    for i in range(2):
        images.append(dict(id=i, file_name=f'{i}.jpg', width=128, height=128))
        annotations.append(dict(image_id=i, file_name=f'{i}.png', segments_info=infos))
        colours = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], axis=-1)
        Image.fromarray(colours).save(root / dataset.data_prefix.seg / f'{i}.png')
    file = root / dataset.ann_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
