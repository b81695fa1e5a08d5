"""Pictures of unusual kinds, and annotations that are wrong: what becomes of them in training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image

from .tiny_configs import ROOT, draw_picture, parse, shrink, train, write_coco

pytestmark = pytest.mark.checklist('bad-data')


def write_kind(kind: str, path: Path, size: tuple[int, int] = (48, 40), seed: int = 0) -> None:
    """A picture of a kind; readers go by what a file holds, not by its name."""
    picture = draw_picture(*size, seed=seed)
    if kind == 'grey':
        picture.convert('L').save(path, 'JPEG')
    elif kind == 'RGBA':
        picture.putalpha(128)
        picture.save(path, 'PNG')
    elif kind == '16-bit':
        grey = np.asarray(picture.convert('L'), dtype=np.uint16)
        Image.fromarray(grey * 256 + 77).save(path, 'PNG')
    elif kind == 'CMYK':
        picture.convert('CMYK').save(path, 'JPEG', quality=95)
    elif kind == 'palette':
        picture.convert('P').save(path, 'PNG')


KINDS = ('grey', 'RGBA', '16-bit', 'CMYK', 'palette')
TASKS = {
    'pretraining': 'itpn-pixel_hivit-demo-p16_1xb32-coslr-24e_photographs',
    'classification': 'fastitpn-tiny-p16_itpn-clip-l-1600e-pre_16xb64-amp-coslr-100e_in1k',
    'detection': 'mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei',
    'segmentation': 'upernet_hivit-demo-itpn-pixel_tpn_1xb4-400i_nuclei',
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_what_loading_makes_of_it(tmp_path, scope, kind):
    """Three channels of 8 bits, whatever it was: without alpha, 16 bits without the lower 8."""
    pytest.importorskip(scope)
    path = tmp_path / 'picture.png'
    write_kind(kind, path)
    init_default_scope(scope)
    loaded = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))['img']
    assert loaded.shape == (40, 48, 3) and loaded.dtype == np.uint8
    picture = draw_picture(48, 40, seed=0)
    wanted = np.asarray(
        picture.convert('L').convert('RGB') if kind in ('grey', '16-bit') else picture
    )
    difference = np.abs(loaded[..., ::-1].astype(int) - wanted).mean()
    assert difference < (25 if kind == 'palette' else 8), difference
    if kind in ('RGBA', '16-bit'):
        assert difference == 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('task', TASKS)
def test_training_takes_it(tmp_path, task, kind):
    """A step in each of our kinds of training; gradients are finite."""
    for package in ('mmpretrain', 'mmdet', 'mmseg'):
        pytest.importorskip(package)
    path = ROOT / 'configs' / task / f'{TASKS[task]}.py'
    cfg = shrink(Config(parse(path).to_dict()), path.stem, tmp_path)
    for part in ('backbone', 'neck'):
        if part in cfg.model:
            cfg.model[part].init_cfg = None
    changed = 0
    for file in sorted(tmp_path.rglob('*')):
        if file.suffix not in ('.jpg', '.png') or 'annotations' in file.parts:
            continue
        with Image.open(file) as picture:
            if picture.mode != 'RGB':
                continue  # labels
            size = picture.size
        write_kind(kind, file, size, seed=changed)
        changed += 1
    assert changed >= 2
    _, gradients = train(cfg)
    assert gradients and all(torch.isfinite(size) for size in gradients.values())


def test_what_mmdet_leaves_out_silently(tmp_path):
    """As docs/data.md says: only `tools/check_data.py` tells."""
    pytest.importorskip('mmdet')
    path, pictures = tmp_path / 'annotations.json', tmp_path / 'pictures'
    write_coco(path, pictures, ('cat', 'dog'))
    content = json.loads(path.read_text())
    wrong = {
        'outside': dict(bbox=[130, 10, 20, 20]),
        'partly outside': dict(bbox=[100, 100, 60, 20]),
        'no width': dict(bbox=[10, 10, 0, 20]),
        'negative': dict(bbox=[10, 10, -5, 20]),
        'no area': dict(bbox=[10, 10, 20, 20], area=0),
        'unknown category': dict(bbox=[10, 10, 20, 20], category_id=9),
        'two points': dict(bbox=[30, 30, 20, 20], segmentation=[[8, 8, 40, 8]]),
    }
    start = dict(image_id=0, category_id=1, area=400, iscrowd=0)
    start['segmentation'] = [[8, 8, 40, 8, 40, 40]]
    for i, values in enumerate(wrong.values()):
        content['annotations'].append(dict(start, id=100 + i, **{}) | values)
    content['images'].append(dict(id=7, file_name='7.jpg', width=128, height=128))
    draw_picture(128, 128, seed=7).save(pictures / '7.jpg')
    path.write_text(json.dumps(content))
    init_default_scope('mmdet')
    settings = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='annotations.json',
        data_prefix=dict(img='pictures'),
        metainfo=dict(classes=('cat', 'dog')),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    )
    dataset = DATASETS.build(settings)
    assert len(dataset) == 2  # the picture without objects is left out
    boxes = {tuple(instance['bbox']) for instance in dataset.get_data_info(0)['instances'][2:]}
    assert boxes == {(100, 100, 160, 120), (30, 30, 50, 50)}  # partly outside, and two points
    sample = dataset[0]['data_samples']
    assert len(sample.gt_instances) == 3  # two points are no polygon: the object is ignored
    assert len(sample.ignored_instances) == 1
