"""tools/predict.py with MaskDINO and panoptic models, against what the packages' own APIs say."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from PIL import Image

from .tiny_configs import ROOT

pytest.importorskip('mmdet')
sys.path.insert(0, str(ROOT / 'tools'))

import predict
from mmdet.structures import DetDataSample
from prediction.drawing import Drawer
from prediction.results import describe_segments, encode_segments, select_segments

from .test_checkpoint.test_maskdino import as_released
from .tiny_predictors import PANOPTIC_CLASSES, Trained, draw_photographs, maskdino, read, stock

OFFSET, CLASSES = 1000, 133
# A model that was not trained is sure of nothing.
ALL_SEGMENTS = {'model.test_cfg.object_mask_thr': 0.0, 'model.test_cfg.iou_thr': 0.0}
STOCK = {
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic': ALL_SEGMENTS
    | {'model.panoptic_head.num_queries': 20, 'model.test_cfg.filter_low_score': False},
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': {
        'model.neck.in_channels': [32, 64, 128, 256],
        'model.test_cfg.rpn.nms_pre': 50,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 5,
        'model.test_cfg.panoptic.stuff_area_limit': 64,
    },
}


@pytest.fixture
def photographs(tmp_path) -> Path:
    return draw_photographs(tmp_path / 'photographs')


def inferred(trained: Trained, file: Path) -> DetDataSample:
    """What mmdet's own API finds."""
    from mmdet.apis import inference_detector, init_detector

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        cfg = Config.fromfile(trained.config)
        dataset = cfg.test_dataloader.dataset
        # panoptic ones need a package of COCO's that predicting does not
        dataset.pipeline = [step for step in dataset.pipeline if 'Annotations' not in step['type']]
        model = init_detector(cfg, trained.checkpoint, device='cpu')
        return inference_detector(model, str(file))


def check_segments(out: Path, name: str, codes: np.ndarray) -> list[dict]:
    """Compare what was written with mmdet's code of each pixel."""
    result = read((out / name).with_suffix('.json'))
    picture = np.asarray(Image.open(out / result['panoptic'])).astype(np.int64)
    assert picture.shape == (*codes.shape, 3)
    numbers = picture @ (1, 256, 256**2)  # as COCO reads it
    segments = result['segments_info']
    wanted = [code for code in np.unique(codes) if code % OFFSET < CLASSES]
    assert len(segments) == len(wanted) > 0
    assert [s['id'] for s in segments] == list(range(1, len(segments) + 1))
    assert np.array_equal(numbers == 0, codes % OFFSET >= CLASSES)
    areas = []
    for segment in segments:
        here = numbers == segment['id']
        [code] = np.unique(codes[here])
        assert np.array_equal(here, codes == code)
        assert segment['class_id'] == code % OFFSET and segment['isthing'] == (code >= OFFSET)
        assert segment['label'] == PANOPTIC_CLASSES[segment['class_id']]
        assert segment['label'].startswith('thing' if segment['isthing'] else 'stuff')
        areas.append(segment['area'])
        assert segment['area'] == here.sum()
        assert segment['share'] == pytest.approx(here.mean(), abs=1e-6)
        rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
        x, y, width, height = segment['bbox']
        assert (x, y) == (columns[0], rows[0])
        assert (x + width - 1, y + height - 1) == (columns[-1], rows[-1])
    assert areas == sorted(areas, reverse=True)
    drawing = np.asarray(Image.open((out / name).with_suffix('.png')))
    assert max(drawing.shape) >= 640 and drawing.shape[0] % codes.shape[0] == 0
    return segments


def test_panoptic_maskdino(tmp_path, photographs, capsys):
    trained = maskdino('panoptic', tmp_path)
    files = [photographs / 'a.png', photographs / 'b.JPG']
    out = trained.predict(*files, '--score-thr', 0)
    said = capsys.readouterr().out.splitlines()[-1]
    kinds, total = set(), []
    for file in files:
        sample = inferred(trained, file)
        codes = sample.pred_panoptic_seg.sem_seg[0].numpy()
        segments = check_segments(out, file.name, codes)
        kinds |= {segment['isthing'] for segment in segments}
        total.append(len(segments))
        objects = read((out / file.name).with_suffix('.json'))['instances']  # beside, with scores
        assert len(objects) == len(sample.pred_instances) > 0
        assert all(item['class_id'] < 80 for item in objects)
        scores = sorted(sample.pred_instances.scores.tolist(), reverse=True)
        assert [item['score'] for item in objects] == pytest.approx(scores, abs=1e-4)
    assert kinds == {True, False}
    names = {path.name for path in out.iterdir()}
    assert names == {f'{n}{e}' for n in 'ab' for e in ('.png', '.json', '_panoptic.png')}
    assert said == (
        f'{sum(total)} segments in 2 pictures (a.png {total[0]}, b.JPG {total[1]}); see {out}'
    )
    none = trained.predict(files[0], '--score-thr', 1)  # is one of objects, not of segments
    result, first = read(none / 'a.json'), read(out / 'a.json')
    assert result['instances'] == [] and result['segments_info'] == first['segments_info']


@pytest.mark.parametrize('config', STOCK, ids=lambda config: config.partition('/')[0])
def test_panoptic_models_of_mmdet(tmp_path, photographs, config):
    trained = stock(config, tmp_path / 'model', **STOCK[config])
    out = trained.predict(photographs / 'a.png')
    sample = inferred(trained, photographs / 'a.png')
    check_segments(out, 'a.png', sample.pred_panoptic_seg.sem_seg[0].numpy())


def test_instances_of_maskdino(tmp_path, photographs):
    from pycocotools import mask as coco_mask

    trained = maskdino('instance', tmp_path)
    out = trained.predict(photographs / 'a.png', '--score-thr', 0)
    found = inferred(trained, photographs / 'a.png').pred_instances
    found = found[found.scores.argsort(descending=True, stable=True)]
    result = read(out / 'a.json')
    assert result.keys() == {'image', 'width', 'height', 'instances'}
    items = result['instances']
    assert len(items) == len(found) == 10
    assert np.allclose([item['score'] for item in items], found.scores, atol=1e-4)
    boxes = np.array([item['bbox'] for item in items])
    boxes[:, 2:] += boxes[:, :2]
    assert np.allclose(boxes, found.bboxes, atol=0.02)
    masks = np.stack([coco_mask.decode(item['mask']) for item in items])
    assert masks.any() and np.array_equal(masks, found.masks.numpy())


def test_semantic_maskdino(tmp_path, photographs):
    pytest.importorskip('mmseg')
    from mmseg.apis import inference_model, init_model

    trained = maskdino('semantic', tmp_path)
    content = torch.load(trained.checkpoint, weights_only=True)
    for name in ('predictor.cls_head', 'pixel_decoder.mask_features'):  # sure of several classes
        content['state_dict'][f'decode_head.{name}.weight'] *= 50
    torch.save(content, trained.checkpoint)
    out = trained.predict(photographs / 'b.JPG')
    cfg = Config.fromfile(trained.config)
    for part in (cfg.model.backbone, cfg.model.neck):
        part.init_cfg = None
    pipeline = cfg.test_dataloader.dataset.pipeline
    cfg.test_pipeline = [step for step in pipeline if step['type'] != 'LoadAnnotations']
    model = init_model(cfg, trained.checkpoint, device='cpu')
    labels = inference_model(model, str(photographs / 'b.JPG')).pred_sem_seg.data[0].numpy()
    assert len(np.unique(labels)) > 1
    result = read(out / 'b.json')
    assert np.array_equal(np.asarray(Image.open(out / result['labels'])), labels)
    assert {item['label'] for item in result['classes']} <= {'sea', 'land', 'ice'}


def test_released_weights_as_they_are(tmp_path, photographs):
    """A file with the authors' names gives what the same weights in our layout give."""
    trained = maskdino('released', tmp_path)
    first = trained.predict(photographs / 'a.png', '--score-thr', 0)
    state = torch.load(trained.checkpoint, weights_only=True)['state_dict']
    model = as_released(state, 'panoptic_head')
    assert not any(name.startswith('panoptic_head') for name in model)
    torch.save(dict(model=model, iteration=1), trained.checkpoint)
    second = trained.predict(photographs / 'a.png', '--score-thr', 0)
    [one, two] = [read(out / 'a.json') for out in (first, second)]
    assert len(one['segments_info']) > 1 and len(one['instances']) == 10
    for key in ('segments_info', 'instances'):
        for a, b in zip(one[key], two[key], strict=True):
            assert {**a, 'label': None} == {**b, 'label': None}  # the file names no classes
    assert (first / 'a_panoptic.png').read_bytes() == (second / 'a_panoptic.png').read_bytes()
    text = Path(trained.config).read_text()
    assert "'double_norm': True" in text
    Path(trained.config).write_text(text.replace("'double_norm': True", "'double_norm': False"))
    with pytest.raises(SystemExit, match='released weights need `panoptic_head` to have double_no'):
        trained.predict(photographs / 'a.png')


def sample_of(codes: list) -> DetDataSample:
    return DetDataSample(pred_panoptic_seg=PixelData(sem_seg=torch.tensor(codes)[None]))


def test_select_segments():
    """Two objects of a class are two segments, a region of stuff is one wherever it lies."""
    codes = [[1001, 1001, 2001, 5], [4, 4, 2001, 2001], [4, 5, 5, 2001]]
    numbers, segments = select_segments(sample_of(codes), 5)
    assert numbers.tolist() == [[3, 3, 1, 0], [2, 2, 1, 1], [2, 0, 0, 1]]
    assert segments == [
        dict(id=1, class_id=1, isthing=True),
        dict(id=2, class_id=4, isthing=False),
        dict(id=3, class_id=1, isthing=True),
    ]
    described = describe_segments(numbers, segments, list('abcde'))
    assert [item['bbox'] for item in described] == [[2, 0, 2, 3], [0, 1, 2, 2], [0, 0, 2, 1]]
    assert [item['area'] for item in described] == [4, 3, 2]
    assert [item['label'] for item in described] == ['b', 'e', 'b']
    numbers, segments = select_segments(sample_of([[5, 5]]), 5)
    assert not numbers.any() and segments == [] and describe_segments(numbers, [], []) == []
    assert select_segments(DetDataSample(), 5) is None


def test_many_segments():
    """More than a byte can count."""
    numbers = np.array([[0, 255, 256], [257, 65535, 65536]])
    picture = encode_segments(numbers)  # blue first, as OpenCV writes it
    assert picture.dtype == np.uint8
    assert picture[..., ::-1].tolist() == [
        [[0, 0, 0], [255, 0, 0], [0, 1, 0]],
        [[1, 1, 0], [255, 255, 0], [0, 0, 1]],
    ]


def test_drawing_of_segments(tmp_path):
    """Colours of the classes, outlines of objects alone, names where they fit."""
    image = np.full((700, 900, 3), 128, dtype=np.uint8)
    numbers = np.zeros((700, 900), dtype=np.int64)
    numbers[:, 450:] = 1
    numbers[100:300, 100:300] = 2
    numbers[500:504, 100:104] = 3
    segments = [
        dict(id=1, class_id=1, isthing=False),
        dict(id=2, class_id=0, isthing=True),
        dict(id=3, class_id=0, isthing=True),
    ]
    drawer = Drawer(['car', 'sky'], [(200, 0, 0), (0, 0, 200)])
    drawer.draw_segments(image, numbers, segments, tmp_path / 'a.png')
    drawing = np.asarray(Image.open(tmp_path / 'a.png')).astype(int)
    assert drawing.shape == image.shape
    assert (drawing[600, 200] == 128).all()  # no segment
    assert drawing[50, 600].tolist() == [64, 64, 164]
    red, green, blue = drawing[120, 120]
    assert red > 40 + green and green == blue
    white = (drawing == 255).all(axis=2)
    assert white[100, 110:290].all() and white[110:290, 100].all() and white[299, 110:290].all()
    assert not white[:, 440:455].any()  # stuff has no outline
    black = (drawing == 0).all(axis=2)
    assert black[190:230, 150:250].any() and black[340:380, 600:750].any()  # behind the names
    assert not black[480:520, 80:130].any()  # too small for one


def test_a_model_without_segments(tmp_path, photographs, monkeypatch, capsys):
    trained = maskdino('instance', tmp_path)
    empty = [DetDataSample()]
    monkeypatch.setattr(predict.Predictor, 'predict', lambda self, batch: empty)
    arguments = [trained.config, trained.checkpoint, photographs / 'a.png', '--out', tmp_path / 'o']
    with pytest.raises(SystemExit, match=r'MaskDINO gives neither objects nor a segmentation'):
        predict.main([*map(str, arguments), '--device', 'cpu'])


def test_a_picture_that_is_too_small(tmp_path, photographs, capsys):
    """It has fewer tokens than the model has queries."""
    trained = maskdino('instance', tmp_path)
    text = Path(trained.config).read_text()
    assert "'num_queries': " in text
    Path(trained.config).write_text(text.replace("'num_queries': ", "'num_queries': 100000 + "))
    out = trained.predict(photographs / 'a.png', status=1)
    assert not list(out.iterdir())
    assert '`num_queries` is 1000' in capsys.readouterr().err
