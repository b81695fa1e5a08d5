"""tools/predict.py with tiny detectors and segmentors, against what the packages' own APIs say."""

import math
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from .tiny_configs import ROOT, draw_picture, shrink, train

pytest.importorskip('mmdet')
sys.path.insert(0, str(ROOT / 'tools'))

import predict
from prediction.drawing import Drawer
from prediction.predictor import Predictor, find_test_dataset, name_classes

from .tiny_predictors import (
    DOTA,
    NUCLEI,
    SEG_PIPELINE,
    Trained,
    detector,
    draw_photographs,
    read,
    segmentor,
)


@pytest.fixture(scope='module')
def masks(tmp_path_factory) -> Trained:
    return detector(NUCLEI, tmp_path_factory.mktemp('masks'), ('cell', 'dust'))


@pytest.fixture(scope='module')
def rotated(tmp_path_factory) -> Trained:
    pytest.importorskip('mmrotate')
    return detector(DOTA, tmp_path_factory.mktemp('rotated'), ('left',) * 14 + ('right',))


@pytest.fixture(scope='module')
def segmented(tmp_path_factory) -> Trained:
    pytest.importorskip('mmseg')
    return segmentor(tmp_path_factory.mktemp('segmented'))


@pytest.fixture
def photographs(tmp_path) -> Path:
    return draw_photographs(tmp_path / 'photographs')


def expected(trained: Trained, file: Path):
    """Objects that mmdet's own API finds, the surest first; and a threshold that half pass."""
    from mmdet.apis import inference_detector, init_detector

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = init_detector(trained.config, trained.checkpoint, device='cpu')
        found = inference_detector(model, str(file)).pred_instances
    found = found[found.scores.argsort(descending=True, stable=True)]
    assert len(found) == 8 and found.scores[3] > found.scores[4]
    threshold = float(found.scores[3:5].mean())
    return found[found.scores > threshold], threshold


def test_masks_and_boxes_are_those_of_the_model(masks, photographs):
    from pycocotools import mask as coco_mask

    for name, size in (('a.png', (200, 150)), ('b.JPG', (96, 120))):
        found, threshold = expected(masks, photographs / name)
        out = masks.predict(photographs / name, '--score-thr', threshold)
        result = read((out / name).with_suffix('.json'))
        assert result.keys() == {'image', 'width', 'height', 'instances'}
        assert result['image'] == str(photographs / name)
        assert (result['width'], result['height']) == size
        items = result['instances']
        assert [item['label'] for item in items] == ['cell'] * len(found)
        assert [item['class_id'] for item in items] == found.labels.tolist()
        assert np.allclose([item['score'] for item in items], found.scores, atol=1e-4)
        boxes = np.array([item['bbox'] for item in items])
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(boxes, found.bboxes, atol=0.02)
        assert boxes.max() > 0.75 * max(size)  # the model sees 128 pixels, whatever the size
        decoded = np.stack([coco_mask.decode(item['mask']) for item in items])
        assert decoded.any() and np.array_equal(decoded, found.masks.numpy())


def test_drawing(masks, photographs):
    """A small picture is enlarged by a whole number, and drawn on where something was found."""
    out = masks.predict(photographs / 'a.png', '--score-thr', 0)
    drawing = np.asarray(Image.open(out / 'a.png')).astype(int)
    assert drawing.shape == (600, 800, 3)  # 4 times 150 x 200
    again = masks.predict(photographs / 'a.png', '--score-thr', 0)
    assert (again / 'a.png').read_bytes() == (out / 'a.png').read_bytes()
    empty = masks.predict(photographs / 'a.png', '--score-thr', 1)
    assert read(empty / 'a.json')['instances'] == []
    plain = np.asarray(Image.open(empty / 'a.png')).astype(int)
    small = np.asarray(Image.open(photographs / 'a.png')).astype(int)
    assert plain.shape == drawing.shape and abs(plain[::4, ::4] - small).mean() < 10
    changed = abs(drawing - plain).max(axis=2) > 10
    assert changed.mean() < 0.95
    x, y, w, h = (4 * v for v in read(out / 'a.json')['instances'][0]['bbox'])
    xs = np.linspace(x, x + w, 20).round().astype(int).clip(2, 797)
    for row in (y, y + h):  # the edges of the box, a line some pixels thick
        near = changed[max(int(row) - 3, 0) : int(row) + 4]
        assert near.any(axis=0)[xs].mean() > 0.9


def test_large_pictures_keep_their_size(masks, tmp_path):
    draw_picture(700, 333, seed=0).save(tmp_path / 'large.png')
    out = masks.predict(tmp_path / 'large.png')
    assert Image.open(out / 'large.png').size == (700, 333)


def test_oriented_boxes(rotated, photographs):
    """Corners and angles in the picture's pixels; drawn."""
    found, threshold = expected(rotated, photographs / 'a.png')
    out = rotated.predict(photographs / 'a.png', '--score-thr', threshold)
    items = read(out / 'a.json')['instances']
    boxes = getattr(found.bboxes, 'tensor', found.bboxes).double()
    for item, (x, y, w, h, angle), label in zip(items, boxes.tolist(), found.labels, strict=True):
        assert item.keys() == {'label', 'class_id', 'score', 'bbox', 'polygon', 'angle'}
        assert item['label'] == ('right' if label == 14 else 'left')
        assert item['angle'] == pytest.approx(math.degrees(angle), abs=0.01)
        cos, sin = math.cos(angle), math.sin(angle)
        corners = [
            (x + i * w / 2 * cos - j * h / 2 * sin, y + i * w / 2 * sin + j * h / 2 * cos)
            for i, j in ((-1, -1), (-1, 1), (1, -1), (1, 1))
        ]
        assert np.allclose(sorted(item['polygon']), sorted(corners), atol=0.05)
        first, second, third, _ = np.array(item['polygon'])
        assert abs((second - first) @ (third - second)) < 0.02 * (w * h + 1)  # neighbours
        left, top = np.min(corners, axis=0)
        right, bottom = np.max(corners, axis=0)
        assert np.allclose(item['bbox'], (left, top, right - left, bottom - top), atol=0.03)
    empty = rotated.predict(photographs / 'a.png', '--score-thr', 1)
    drawing, plain = (
        np.asarray(Image.open(folder / 'a.png')).astype(int) for folder in (out, empty)
    )
    assert drawing.shape == plain.shape == (600, 800, 3)
    changed = abs(drawing - plain).max(axis=2) > 20
    assert changed.mean() < 0.5
    for item in items:
        ends = 4 * np.array(item['polygon'])
        for start, end in zip(ends, np.roll(ends, -1, axis=0)):
            points = (start + np.linspace(0, 1, 50)[:, None] * (end - start)).round().astype(int)
            inside = [(x, y) for x, y in points if 3 < x < 796 and 3 < y < 596]
            near = [changed[y - 3 : y + 4, x - 3 : x + 4].any() for x, y in inside]
            assert all(near[2:-2])


def test_semantic_segmentation(segmented, photographs):
    from mmseg.apis import inference_model, init_model

    out = segmented.predict(photographs / 'a.png', photographs / 'b.JPG')
    cfg = Config.fromfile(segmented.config)
    cfg.test_pipeline = [step for step in SEG_PIPELINE if step['type'] != 'LoadAnnotations']
    cfg.model.decode_head.norm_cfg.type = 'BN'
    cfg.model.backbone.init_cfg = None
    model = init_model(cfg, segmented.checkpoint, device='cpu')
    for name in ('a.png', 'b.JPG'):
        labels = inference_model(model, str(photographs / name)).pred_sem_seg.data[0].numpy()
        assert len(np.unique(labels)) > 1
        result = read((out / name).with_suffix('.json'))
        written = np.asarray(Image.open(out / result['labels']))
        assert written.dtype == np.uint8 and np.array_equal(written, labels)
        shares = [(np.sum(labels == i), i) for i in np.unique(labels)]
        assert [item['class_id'] for item in result['classes']] == [
            i for _, i in sorted(shares, reverse=True)
        ]
        assert sum(item['share'] for item in result['classes']) == pytest.approx(1, abs=1e-4)
        for item in result['classes']:
            assert item['pixels'] == np.sum(labels == item['class_id'])
            assert item['label'] == ('sea', 'land', 'ice')[item['class_id']]
        drawing = np.asarray(Image.open((out / name).with_suffix('.png'))).astype(float)
        factor = drawing.shape[0] // labels.shape[0]
        large = labels.repeat(factor, 0).repeat(factor, 1)
        assert drawing.shape[:2] == large.shape and max(drawing.shape) >= 640
        if (large == 0).any() and (large == 1).any():  # green, magenta: the checkpoint's colours
            greens = [
                np.median(drawing[large == i][:, 1] - drawing[large == i][:, 0]) for i in (0, 1)
            ]
            assert greens[0] > 20 + greens[1]


def test_batches_change_nothing(masks, photographs):
    files = [photographs / 'a.png', photographs / 'more' / 'a.png', photographs / 'b.JPG']
    one, three = masks.predict(*files), masks.predict(*files, '--batch', 3)
    names = {path.name for path in one.iterdir()}
    assert names == {'a.png', 'a.json', 'a-2.png', 'a-2.json', 'b.png', 'b.json'}
    for name in names:
        if name.endswith('.json'):
            a, b = read(one / name), read(three / name)
            scores = [[item['score'] for item in result['instances']] for result in (a, b)]
            assert a['image'] == b['image'] and np.allclose(*scores, atol=2e-4)
    assert read(one / 'a.json') != read(one / 'a-2.json')


def test_names_of_classes():
    """The checkpoint's own come first, then those of the config; the rest are numbered."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    model[0].num_classes = 3
    kept = dict(classes=('a', 'b', 'c'), palette=[(1, 2, 3)] * 4)
    config = dict(classes=['x', 'y', 'z'], palette=[[9, 9, 9]] * 3)
    assert name_classes(model, kept, config) == (['a', 'b', 'c'], [(1, 2, 3)] * 3)
    assert name_classes(model, {}, config) == (['x', 'y', 'z'], [(9, 9, 9)] * 3)
    names, palette = name_classes(model, dict(classes='nucleus', palette='random'))
    assert names == ['nucleus', 'class 1', 'class 2'] and len(set(palette)) == 3
    # what a safe reader makes of objects is no name
    assert name_classes(model, dict(classes=object(), palette=object()), config)[0][0] == 'x'


def test_classes_of_the_config(masks, tmp_path):
    """A checkpoint that tells none: the names of the config's dataset."""
    state = torch.load(masks.checkpoint, weights_only=True)['state_dict']
    torch.save(dict(state_dict=state), tmp_path / 'bare.pth')
    predictor = Predictor(
        Config.fromfile(masks.config), str(tmp_path / 'bare.pth'), torch.device('cpu')
    )
    assert predictor.names == ['nucleus']


def test_names_of_segments_are_not_cut_off(segmented):
    """Written where the class is, in its colour, and within the picture."""
    drawer = Drawer(['sky', 'a very long name'], [(0, 0, 255), (255, 0, 0)])
    visualizer = drawer._semantic
    visualizer.longest = 'a very long name'
    mask = np.zeros((500, 800), dtype=np.uint8)
    mask[480:, 790:] = 1
    x, y = visualizer._get_center_loc(mask)
    assert 400 < x < 600 and 440 < y < 490
    mask[20:60, 100:301] = 1
    assert visualizer._get_center_loc(mask).tolist() == [200, 20]
    visualizer.longest = 'much longer than this small picture is wide'
    assert visualizer._get_center_loc(np.ones((20, 30), dtype=np.uint8)).tolist() == [0, 0]


def test_settings_of_the_config_as_a_runner_takes_them(segmented, rotated, photographs):
    """A preprocessor beside the model, and a pipeline with ground truth."""
    cpu, file = torch.device('cpu'), photographs / 'a.png'
    cfg = Config.fromfile(segmented.config)
    cfg.data_preprocessor = dict(cfg.model.pop('data_preprocessor'), mean=[1.0, 2.0, 3.0])
    predictor = Predictor(cfg, segmented.checkpoint, cpu)
    assert predictor.model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]

    cfg = Config.fromfile(rotated.config)
    plain = Predictor(cfg, rotated.checkpoint, cpu).prepare(file)
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[2:2] = [
        dict(type='mmdet.LoadAnnotations', with_bbox=True, box_type='qbox'),
        dict(type='ConvertBoxType', box_type_mapping=dict(gt_bboxes='rbox')),
    ]
    other = Predictor(cfg, rotated.checkpoint, cpu).prepare(file)
    assert torch.equal(plain.data['inputs'], other.data['inputs'])


def test_dataset_inside_wrappers():
    inner = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')])
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ConcatDataset', datasets=[inner]))
    assert find_test_dataset(Config(dict(val_dataloader=dict(dataset=wrapped)))) == inner
    with pytest.raises(ValueError, match='no test pipeline'):
        find_test_dataset(Config(dict(test_dataloader=None)))


@pytest.mark.slow
def test_without_the_packages_that_it_does_not_need(segmented, photographs, tmp_path):
    """A segmentor needs neither mmdet nor mmrotate; without matplotlib it writes JSON only."""
    blocked = textwrap.dedent("""
        import runpy, sys
        for name in ('matplotlib', 'mmdet', 'mmrotate', 'mmpretrain'):
            sys.modules[name] = None
        sys.argv = sys.argv[1:]
        sys.path[0] = sys.argv[0].rpartition('/')[0]
        runpy.run_path(sys.argv[0], run_name='__main__')
    """)
    arguments = [ROOT / 'tools/predict.py', segmented.config, segmented.checkpoint]
    arguments += [photographs / 'a.png', '--out', tmp_path / 'out']
    result = subprocess.run(
        [sys.executable, '-c', blocked, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert 'matplotlib is not installed' in result.stderr
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'a.json', 'a_labels.png'}


def test_inferencer_of_mmdet(photographs, tmp_path, monkeypatch):
    """The lines of docs/inference.md, with a model that was trained, find what the tool finds."""
    from pycocotools import mask as coco_mask

    [text] = re.findall(
        r'^```python\n(.*?)^```', (ROOT / 'docs/inference.md').read_text(), re.DOTALL | re.MULTILINE
    )
    cfg = Config.fromfile(ROOT / 'configs' / f'{NUCLEI}.py')
    cfg = shrink(cfg, Path(NUCLEI).name, tmp_path / 'run')
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.model.test_cfg.rcnn.max_per_img = 8
    parts = cfg.model.backbone, cfg.model.neck
    for part in parts:
        part.init_cfg = None
    train(cfg)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'run' / 'epoch_1.pth'
    for part in parts:  # of the config as it is shipped; nobody reads it to predict
        part.init_cfg = dict(type='Pretrained', checkpoint='no/such.pth')
    items = cfg.to_dict().items()
    config.write_text('\n'.join(f'{key} = {value!r}' for key, value in items))
    for old, new in (
        (f'configs/{NUCLEI}.py', config),
        ('work_dirs/demo/finetune/epoch_24.pth', checkpoint),
        ('data/demo/nuclei/val', photographs),
        ('pred_score_thr=0.3', 'pred_score_thr=0'),
    ):
        assert old in text
        text = text.replace(old, str(new))
    (photographs / 'b.JPG').rename(photographs / 'b.jpg')  # which it would not see
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(text, scope)
    assert {path.name for path in (tmp_path / 'predictions/vis').iterdir()} == {'a.png', 'b.jpg'}
    arguments = [config, checkpoint, photographs, '--out', 'out', '--score-thr', '0']
    assert predict.main([*map(str, arguments), '--device', 'cpu']) == 0
    found = scope['result']['predictions']
    names = sorted(path.stem for path in (tmp_path / 'out').glob('*.json'))
    assert len(found) == len(names) == 2
    by_width = {item['masks'][0]['size'][1]: item for item in found}  # its order is the folder's
    for name in names:
        result = read(tmp_path / 'out' / f'{name}.json')
        item = by_width[result['width']]
        assert len(item['scores']) == len(result['instances']) > 0
        scores = [instance['score'] for instance in result['instances']]
        assert np.allclose(sorted(item['scores'], reverse=True), scores, atol=1e-4)
        sizes = np.array([instance['bbox'][2:] for instance in result['instances']])
        boxes = np.array(item['bboxes'])
        assert np.allclose(np.sort(boxes[:, 2] - boxes[:, 0]), np.sort(sizes[:, 0]), atol=0.02)
        areas = [coco_mask.area(instance['mask']) for instance in result['instances']]
        assert sorted(areas) == sorted(coco_mask.area(mask) for mask in item['masks'])
