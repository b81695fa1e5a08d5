"""tools/predict.py with tiny detectors and segmentors, against what the packages' own APIs say."""

import json
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
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from .tiny_configs import ROOT, draw_picture, shrink, train

pytest.importorskip('mmdet')
sys.path.insert(0, str(ROOT / 'tools'))

import predict
from prediction import pictures as inputs
from prediction.drawing import Drawer
from prediction.predictor import Predictor, drawable, find_test_dataset, name_classes

NUCLEI = 'detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei'
DOTA = 'rotated_detection/rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota'
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


@pytest.fixture(scope='module')
def masks(tmp_path_factory) -> Trained:
    return detector(NUCLEI, tmp_path_factory.mktemp('masks'), ('cell', 'dust'))


@pytest.fixture(scope='module')
def rotated(tmp_path_factory) -> Trained:
    pytest.importorskip('mmrotate')
    return detector(DOTA, tmp_path_factory.mktemp('rotated'), ('left',) * 14 + ('right',))


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory) -> Trained:
    pytest.importorskip('mmseg')
    cfg = Config(dict(default_scope='mmseg', model=SEGMENTOR))
    cfg.test_dataloader = dict(dataset=dict(type='ADE20KDataset', pipeline=SEG_PIPELINE))
    return Trained(tmp_path_factory.mktemp('segmentor'), cfg, ('sea', 'land', 'ice'))


def detector(config: str, folder: Path, classes: tuple[str, ...]) -> Trained:
    cfg = Config.fromfile(ROOT / 'configs' / f'{config}.py')
    cfg = shrink(cfg, Path(config).name, folder)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=8)
    if 'rotated' in config:
        cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    return Trained(folder / 'model', cfg, classes)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Two pictures of unequal sizes, and one of another kind with the name of the first."""
    folder = tmp_path / 'photographs'
    (folder / 'more').mkdir(parents=True)
    draw_picture(200, 150, seed=0).save(folder / 'a.png')
    draw_picture(96, 120, seed=1).save(folder / 'b.JPG')
    draw_picture(200, 150, seed=2).save(folder / 'more' / 'a.png')
    (folder / 'notes.txt').write_text('not a picture')
    return folder


def read(file: Path) -> dict:
    return json.loads(file.read_text())


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
        assert boxes.max() > 0.8 * max(size)  # the model sees 128 pixels, whatever the size
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


def test_semantic_segmentation(segmentor, photographs):
    from mmseg.apis import inference_model, init_model

    out = segmentor.predict(photographs / 'a.png', photographs / 'b.JPG')
    cfg = Config.fromfile(segmentor.config)
    cfg.test_pipeline = [step for step in SEG_PIPELINE if step['type'] != 'LoadAnnotations']
    cfg.model.decode_head.norm_cfg.type = 'BN'
    cfg.model.backbone.init_cfg = None
    model = init_model(cfg, segmentor.checkpoint, device='cpu')
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


def test_batches_hold_pictures_of_one_shape(masks, photographs, monkeypatch):
    seen = []
    original = Predictor.predict
    monkeypatch.setattr(
        Predictor, 'predict', lambda self, batch: seen.append(len(batch)) or original(self, batch)
    )
    a = photographs / 'a.png'
    for i in range(3):
        (photographs / f'c{i}.png').write_bytes(a.read_bytes())
    files = [a, photographs / 'b.JPG', *(photographs / f'c{i}.png' for i in range(3))]
    masks.predict(*files, '--batch', 2)
    assert seen == [1, 1, 2, 1]


@pytest.fixture
def broken(photographs) -> list[tuple[Path, str]]:
    """Files that are no whole pictures, and what is said of them."""
    whole = (photographs / 'a.png').read_bytes()
    photograph = (photographs / 'b.JPG').read_bytes()
    files = {
        'cut.png': (whole[: len(whole) // 2], 'not a whole picture'),
        'cut.jpg': (photograph[: len(photograph) // 2], 'not a whole picture'),
        'damaged.png': (whole[:3000] + b'damage' + whole[3006:], 'not a whole picture'),
        'empty.png': (b'', 'the file is empty'),
        'text.jpg': (b'these are words', 'not a picture that can be read'),
    }
    for name, (content, _) in files.items():
        (photographs / name).write_bytes(content)
    (photographs / 'folder.png').mkdir()
    return [(photographs / name, reason) for name, (_, reason) in files.items()] + [
        (photographs / 'missing.png', 'no such file')
    ]


def test_broken_pictures_are_skipped(masks, photographs, broken, capsys):
    files = [file for file, _ in broken]
    out = masks.predict(
        files[0], photographs / 'a.png', *files[1:], photographs / 'b.JPG', status=1
    )
    assert {path.name for path in out.iterdir()} == {'a.png', 'a.json', 'b.png', 'b.json'}
    output, errors = capsys.readouterr()
    for file, reason in broken:
        assert re.search(f'^{re.escape(str(file))}: skipped, {reason}', errors, re.MULTILINE)
    assert errors.count('skipped') == len(broken) and 'Traceback' not in errors
    total = len(files) + 2
    assert f'{total}/{total}' in errors and 'ETA' in errors
    counts = {name: len(read(out / f'{name[0]}.json')['instances']) for name in ('a.png', 'b.JPG')}
    listed = ', '.join(f'{name} {count}' for name, count in counts.items())
    assert output.splitlines()[-1] == (
        f'{sum(counts.values())} objects in 2 pictures ({listed}); {len(files)} skipped; see {out}'
    )


def test_a_picture_that_the_model_fails_on_is_skipped(masks, photographs, monkeypatch, capsys):
    original = Predictor.predict

    def fail(self, batch):
        if any(picture.path.parent.name == 'more' for picture in batch):
            raise RuntimeError('out of memory\nand more')
        return original(self, batch)

    monkeypatch.setattr(Predictor, 'predict', fail)
    files = [photographs / 'a.png', photographs / 'more' / 'a.png']
    out = masks.predict(*files, '--batch', 2, status=1)
    assert {path.name for path in out.iterdir()} == {'a.png', 'a.json'}
    assert (
        f'{files[1]}: skipped, the model fails on it (out of memory)\n' in capsys.readouterr().err
    )


def test_kinds_of_pictures(masks, tmp_path):
    """Grey, transparent, 16-bit and turned pictures are read as the loader of OpenMMLab does."""
    colour = np.asarray(draw_picture(90, 60, seed=0))
    grey = colour[..., 0]
    kinds = {
        'colour': Image.fromarray(colour),
        'transparent': Image.fromarray(np.dstack([colour, 255 - grey]), 'RGBA'),
        'grey': Image.fromarray(grey),
        'grey_as_colour': Image.fromarray(np.dstack([grey] * 3)),
        'deep': Image.fromarray(grey.astype(np.uint16) * 256 + 7),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / f'{name}.png')
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    kinds['colour'].save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    out = masks.predict(tmp_path / '*.*g')
    results = {path.stem: read(path) for path in out.glob('*.json')}
    for one, other in (('transparent', 'colour'), ('grey', 'grey_as_colour'), ('deep', 'grey')):
        assert results[one]['instances'] == results[other]['instances']
    assert results['colour']['instances'] != results['grey']['instances']
    assert (results['turned']['width'], results['turned']['height']) == (60, 90)
    drawn = np.asarray(Image.open(out / 'turned.png')).shape
    assert drawn == (720, 480, 3)


def test_drawable():
    """What loaders with other settings give: one channel, several, floats, 16 bits."""
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for image in (grey, grey[..., None], grey.astype(np.uint16) * 256, grey.astype(float)):
        assert np.array_equal(drawable(image), np.dstack([grey] * 3))
    five = np.dstack([grey + i for i in range(5)])
    assert np.array_equal(drawable(five), five[..., :3])
    assert drawable(np.array([[-5.0, 300.0]]))[0, :, 0].tolist() == [0, 255]


def test_paths_folders_and_patterns(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(photographs)
    out = tmp_path / 'out'

    def find(*paths):
        return [str(path) for path in inputs.find_pictures(paths, out)]

    assert find('.') == ['a.png', 'b.JPG']  # no text, no sub-folder
    assert find('*.png', 'b.JPG', './a.png') == ['a.png', 'b.JPG']  # each once
    assert find('**/*.png') == ['a.png', 'more/a.png']
    assert find('gone.png', 'notes.txt') == ['gone.png', 'notes.txt']  # reported when read
    (photographs / 'x[1].png').write_bytes((photographs / 'a.png').read_bytes())
    assert find('x[1].png') == ['x[1].png']  # a name, not a pattern
    (photographs / 'empty').mkdir()
    for path, message in (
        ('*.tif', r'\*\.tif: no file matches'),
        ('empty', 'empty: no picture'),
        ('mor?', r'mor\?: no file matches'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            find('a.png', path)
    with pytest.raises(ValueError, match=r'`--out` .* holds a\.png'):
        inputs.find_pictures(['a.png'], photographs)


def test_names_do_not_collide():
    files = ['a/x.png', 'b/x.jpg', 'x-2.png', 'x_labels.png', 'c/x.tif', 'y.tar.png']
    names = inputs.name_results(map(Path, files))
    assert names == ['x', 'x-2', 'x-2-2', 'x_labels-2', 'x-3', 'y.tar']
    written = [name + ending for name in names for ending in inputs.ENDINGS]
    assert len(set(written)) == len(written)


def test_errors_of_one_line(masks, photographs, tmp_path, monkeypatch):
    picture, config, checkpoint = photographs / 'a.png', masks.config, masks.checkpoint
    pretraining = next((ROOT / 'configs/pretraining').glob('itpn-pixel_hivit-demo*.py'))
    classifier = next((ROOT / 'configs/classification').glob('*.py'))
    half = torch.load(checkpoint, weights_only=True)
    half['state_dict'] = {k: v for k, v in half['state_dict'].items() if 'mask_head' not in k}
    torch.save(half, tmp_path / 'half.pth')
    torch.save(dict(state_dict=dict(x=torch.zeros(1)), bad=ThreadLike()), tmp_path / 'unsafe.pth')
    Path(tmp_path / 'unfit.py').write_text(
        Path(config)
        .read_text()
        .replace("'in_channels': (16, 32, 64)", "'in_channels': (16, 32, 8)")
    )
    assert (tmp_path / 'unfit.py').read_text() != Path(config).read_text()
    (tmp_path / 'syntax.py').write_text('model = dict(')
    (tmp_path / 'base.py').write_text("_base_ = 'none.py'")
    (tmp_path / 'type.py').write_text(Path(config).read_text().replace('MaskRCNN', 'MaskCNN'))
    cases = [
        (['none.py', checkpoint, picture], "the config 'none.py' does not exist"),
        ([checkpoint, checkpoint, picture], 'expected a config'),
        ([pretraining, checkpoint, picture], "detector or segmentor.*'mmpretrain'"),
        ([classifier, checkpoint, picture], "detector or segmentor.*'mmpretrain'"),
        ([config, 'none.pth', picture], 'none.pth: no such checkpoint'),
        ([config, tmp_path / 'half.pth', picture], 'parameters would be random: .*mask_head'),
        ([config, tmp_path / 'unsafe.pth', picture], 'asks for .*ThreadLike'),
        ([config, config, picture], 'damaged, truncated or not a checkpoint'),
        ([tmp_path / 'syntax.py', checkpoint, picture], 'syntax.py: .* never closed'),
        ([tmp_path / 'base.py', checkpoint, picture], r'none\.py'),
        ([tmp_path / 'type.py', checkpoint, picture], 'MaskCNN is not in the'),
        ([tmp_path / 'unfit.py', checkpoint, picture], '`neck.in_channels` is .*make them equal'),
        ([config, checkpoint, 'none/*.png'], r'none/\*\.png: no file matches'),
        ([config, checkpoint, picture, '--score-thr', '1.5'], '`--score-thr` must be from 0 to 1'),
        ([config, checkpoint, picture, '--score-thr', 'nan'], '`--score-thr` must be from 0 to 1'),
        ([config, checkpoint, picture, '--batch', '0'], '`--batch` must be at least 1'),
        ([config, checkpoint, picture, '--device', 'tpu9'], "`--device` 'tpu9' is not there"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as raised:
            predict.main([*map(str, arguments), '--out', str(tmp_path / 'out')])
        text = str(raised.value)
        assert text.startswith('predict.py: ') and '\n' not in text
        assert re.search(message, text), text
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='File exists'):
        predict.main([config, checkpoint, str(picture), '--out', str(tmp_path / 'file')])
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    with pytest.raises(SystemExit, match='belongs to mmdet, which is not installed; install `'):
        predict.main([config, checkpoint, str(picture), '--out', str(tmp_path / 'out')])


class ThreadLike:
    """An object that a checkpoint of weights has no business to hold."""


def test_interruption(masks, photographs, monkeypatch, capsys):
    """What is done stays, and the status is that of a program stopped by the keyboard."""
    original = Predictor.prepare

    def prepare(self, path):
        if path.name == 'b.JPG':
            raise KeyboardInterrupt
        return original(self, path)

    monkeypatch.setattr(Predictor, 'prepare', prepare)
    files = [photographs / 'a.png', photographs / 'more' / 'a.png', photographs / 'b.JPG']
    out = masks.predict(*files, status=130)
    assert {path.name for path in out.iterdir()} == {'a.png', 'a.json'}  # one more was being read
    output, errors = capsys.readouterr()
    assert 'interrupted' in errors and ' objects in 1 picture (a.png' in output


def test_summary_of_many(masks, photographs, monkeypatch, capsys):
    monkeypatch.setattr(predict, 'LISTED', 1)
    out = masks.predict(photographs, '--score-thr', 0)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'16 objects in 2 pictures (8 to 8 each, median 8); see {out}'
    )


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


def test_names_of_segments_are_not_cut_off(segmentor):
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


def test_settings_of_the_config_as_a_runner_takes_them(segmentor, rotated, photographs):
    """A preprocessor beside the model, and a pipeline with ground truth."""
    cpu, file = torch.device('cpu'), photographs / 'a.png'
    cfg = Config.fromfile(segmentor.config)
    cfg.data_preprocessor = dict(cfg.model.pop('data_preprocessor'), mean=[1.0, 2.0, 3.0])
    predictor = Predictor(cfg, segmentor.checkpoint, cpu)
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


def test_without_the_packages_that_it_does_not_need(segmentor, photographs, tmp_path):
    """A segmentor needs neither mmdet nor mmrotate; without matplotlib it writes JSON only."""
    blocked = textwrap.dedent("""
        import runpy, sys
        for name in ('matplotlib', 'mmdet', 'mmrotate', 'mmpretrain'):
            sys.modules[name] = None
        sys.argv = sys.argv[1:]
        sys.path[0] = sys.argv[0].rpartition('/')[0]
        runpy.run_path(sys.argv[0], run_name='__main__')
    """)
    arguments = [ROOT / 'tools/predict.py', segmentor.config, segmentor.checkpoint]
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
