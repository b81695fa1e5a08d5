"""Tiny detectors and segmentors as files, and pictures, for the tests of tools/predict.py."""

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .tiny_configs import ROOT, draw_picture, shrink
from .tiny_configs import _shrink_model as shrink_widths

sys.path.insert(0, str(ROOT / 'tools'))

import predict


def find_config(pattern: str) -> str:
    """Name of the one config that a pattern matches; those of the demo tell how long it trains."""
    [path] = (ROOT / 'configs').glob(f'{pattern}.py')
    return path.relative_to(ROOT / 'configs').with_suffix('').as_posix()


NUCLEI = 'detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei'
DOTA = 'rotated_detection/rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota'
MASKDINO = dict(
    instance=find_config('detection/maskdino_hivit-demo-*_nuclei'),
    panoptic='detection/maskdino_r50_8xb2-amp-lsj-50e_coco-panoptic',
    released='detection/maskdino_r50-released_8xb2-amp-lsj-50e_coco-panoptic',
    semantic=find_config('segmentation/maskdino_hivit-demo-*_nuclei'),
)
PANOPTIC_CLASSES = tuple(f'{"thing" if i < 80 else "stuff"} {i}' for i in range(133))
SEGMENTOR = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(
        type='itpn_mm.HiViT',
        arch=dict(embed_dims=32, depths=(1, 1, 1), num_heads=2),
        img_size=64,
        init_cfg=dict(type='Pretrained', checkpoint='no/such.pth'),
    ),
    neck=dict(type='itpn_mm.TransformerPyramidNeck', in_channels=(8, 16, 32), out_channels=16),
    decode_head=dict(
        type='UPerHead',
        in_channels=[16] * 5,
        in_index=[0, 1, 2, 3, 4],
        channels=16,
        num_classes=3,
        norm_cfg=dict(type='SyncBN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    test_cfg=dict(mode='whole'),
)
SEG_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]


class Trained:
    """A tiny model as files: config and checkpoint."""

    def __init__(self, folder: Path, cfg: Config, classes: tuple[str, ...]) -> None:
        folder.mkdir(exist_ok=True)
        self.config, self.checkpoint = str(folder / 'config.py'), str(folder / 'model.pth')
        items = cfg.to_dict().items()
        Path(self.config).write_text('\n'.join(f'{key} = {value!r}' for key, value in items))
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
        for parameter in model.parameters():  # of some heads they start so small that all is equal
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
        meta = dict(dataset_meta=dict(classes=classes, palette=[(0, 255, 0), (255, 0, 255)]))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), self.checkpoint)

    def predict(self, *arguments: object, status: int = 0) -> Path:
        """Run the tool into a new folder and return it."""
        out = Path(self.config).parent / f'out{len(list(Path(self.config).parent.iterdir()))}'
        arguments = [self.config, self.checkpoint, *arguments, '--out', out, '--device', 'cpu']
        assert predict.main([str(argument) for argument in arguments]) == status
        return out


def detector(config: str, folder: Path, classes: tuple[str, ...]) -> Trained:
    cfg = shrunk(config, folder)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=8)
    if 'rotated' in config:
        cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    return Trained(folder / 'model', cfg, classes)


def shrunk(config: str, folder: Path) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / f'{config}.py')
    return shrink(cfg, Path(config).name, folder)


def maskdino(kind: str, folder: Path) -> Trained:
    """A MaskDINO of a shipped config: 'instance', 'panoptic', 'released' (the same) or 'semantic'.

    A model that was not trained is sure of nothing, so the panoptic one keeps all segments.
    """
    cfg = shrunk(MASKDINO[kind], folder)
    classes = dict(
        instance=('cell',),
        panoptic=(*PANOPTIC_CLASSES, 'not a class of the model'),
        released=PANOPTIC_CLASSES,
        semantic=('sea', 'land', 'ice'),
    )
    if kind in ('panoptic', 'released'):
        cfg.model.test_cfg.update(object_mask_thr=0.0, iou_thr=0.0)
    return Trained(folder / 'model', cfg, classes[kind])


def stock(config: str, folder: Path, **changes: object) -> Trained:
    """A panoptic model of mmdet, of its own config."""
    cfg = Config.fromstring(f"_base_ = 'mmdet::{config}.py'", '.py')
    cfg.model = shrink_widths(cfg.model.to_dict(), 8)
    cfg.merge_from_dict(changes)
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)
    return Trained(folder, cfg, PANOPTIC_CLASSES)


def segmentor(folder: Path) -> Trained:
    cfg = Config(dict(default_scope='mmseg', model=SEGMENTOR))
    cfg.test_dataloader = dict(dataset=dict(type='ADE20KDataset', pipeline=SEG_PIPELINE))
    return Trained(folder, cfg, ('sea', 'land', 'ice'))


def draw_photographs(folder: Path) -> Path:
    """Two pictures of unequal sizes, and one of another kind with the name of the first."""
    (folder / 'more').mkdir(parents=True)
    draw_picture(200, 150, seed=0).save(folder / 'a.png')
    draw_picture(96, 120, seed=1).save(folder / 'b.JPG')
    draw_picture(200, 150, seed=2).save(folder / 'more' / 'a.png')
    (folder / 'notes.txt').write_text('not a picture')
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text())
