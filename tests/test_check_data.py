"""tools/check_data.py: what is wrong with data is found, counted and named before training."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

from .tiny_configs import draw_picture, write_coco

pytestmark = pytest.mark.checklist('bad-data')
CLASSES = ('cat', 'dog')
DETECTION = """
default_scope = 'mmdet'
train_dataloader = dict(
    dataset=dict(
        type='CocoDataset',
        data_root={root!r},
        ann_file='annotations.json',
        data_prefix=dict(img='pictures'),
        metainfo=dict(classes=('cat', 'dog')),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    )
)
"""
SEGMENTATION = """
default_scope = 'mmseg'
train_dataloader = dict(
    dataset=dict(
        type='BaseSegDataset',
        data_root={root!r},
        data_prefix=dict(img_path='pictures', seg_map_path='labels'),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        metainfo=dict(classes=('sky', 'sea'), palette=[[0, 0, 0], [9, 9, 9]]),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(64, 64)),
            dict(type='PackSegInputs'),
        ],
    )
)
"""


@pytest.fixture
def check(root, tmp_path, monkeypatch, capfd):
    """Run the tool on a config; gives exit status, what is printed, and the list of problems."""
    monkeypatch.syspath_prepend(str(root / 'tools'))
    tool = importlib.import_module('check_data')

    def check(text: str, *arguments: str) -> tuple[int, str, list[str]]:
        config, out = tmp_path / 'config.py', tmp_path / 'out' / 'problems.txt'
        config.write_text(text.format(root=str(tmp_path)))
        command = ['check_data.py', str(config), '--jobs', '2', '--out', str(out), *arguments]
        monkeypatch.setattr('sys.argv', command)
        with pytest.raises(SystemExit) as end:
            tool.main()
        return end.value.code, capfd.readouterr().out, out.read_text().splitlines()

    return check


def test_detection(check, tmp_path):
    pytest.importorskip('mmdet')
    path, pictures = tmp_path / 'annotations.json', tmp_path / 'pictures'
    write_coco(path, pictures, CLASSES)
    status, text, problems = check(DETECTION, '--splits', 'train', 'val')
    assert (status, problems) == (0, []), text
    assert 'train: 2 samples, 2 processes\ntrain: 0 problems\n' in text
    assert 'val: no data in this config' in text

    content = json.loads(path.read_text())
    for i, name in ((5, 'gone.jpg'), (6, 'cut.jpg'), (7, 'zero.jpg'), (1, 'empty.jpg')):
        content['images'].append(dict(id=i, file_name=name, width=128, height=128))
        if i != 1:
            kept = dict(content['annotations'][0], image_id=i, id=100 + i)
            content['annotations'].append(kept)
        if name != 'gone.jpg':
            draw_picture(128, 128, seed=i).save(pictures / name)
    content['images'][-1]['id'] = 8
    (pictures / 'cut.jpg').write_bytes((pictures / 'cut.jpg').read_bytes()[:-500])
    (pictures / 'zero.jpg').write_bytes(b'')
    square = [8, 8, 40, 8, 40, 40, 8, 40]
    for number, bbox, polygon, other in (
        (10, [130, 10, 20, 20], square, {}),
        (11, [100, 100, 60, 20], square, {}),
        (12, [10, 10, 0, 20], square, {}),
        (13, [10, 10, -5, 20], square, {}),
        (14, [10, 10, 20, 20], square, dict(category_id=9)),
        (15, [10, 10, 20, 20], square, dict(image_id=77)),
        (16, [10, 10, 20, 20], [8, 8, 40, 8], {}),
    ):
        annotation = dict(id=number, image_id=0, category_id=1, bbox=bbox, area=400, iscrowd=0)
        annotation['segmentation'] = [polygon]
        content['annotations'].append(annotation | other)
    path.write_text(json.dumps(content))
    status, text, problems = check(DETECTION, '--splits', 'train')
    assert status == 1
    for kind, where in (
        ('picture cannot be read', 'gone.jpg: FileNotFoundError'),
        ('picture cannot be read', 'cut.jpg: OSError: image file is truncated'),
        ('picture cannot be read', 'zero.jpg: UnidentifiedImageError'),
        ('image without objects', 'empty.jpg'),
        ('box outside the picture', '0.jpg: annotation 10, bbox [130, 10, 20, 20] in 128 x 128'),
        ('box partly outside', '0.jpg: annotation 11'),
        ('box without area', '0.jpg: annotation 12'),
        ('box of negative size', '0.jpg: annotation 13'),
        ('category that is no class', '0.jpg: annotation 14, category 9'),
        ('annotation of no image', 'annotation 15, image 77'),
        ('polygon of less than 3 points', '0.jpg: annotation 16, 4 numbers'),
    ):
        assert any(f'train: {kind}: ' in line and where in line for line in problems), (
            kind,
            problems,
        )
        assert f'  {kind}: ' in text

    # Of this mmdet makes no data set at all.
    content['annotations'].append(content['annotations'][0])
    content['annotations'][1]['bbox'] = [10, 10, 20]
    path.write_text(json.dumps(content))
    _, _, problems = check(DETECTION, '--splits', 'train')
    assert any(
        'annotation id used again: ' in line and 'id 1, 2 times' in line for line in problems
    )
    assert any('box missing or no four numbers: 0.jpg: annotation 2' in line for line in problems)
    assert any('data set cannot be made: ' in line for line in problems)


def test_segmentation(check, tmp_path):
    pytest.importorskip('mmseg')
    for folder in ('pictures', 'labels'):
        (tmp_path / folder).mkdir()
    for i, (width, label) in enumerate(((96, 1), (90, 1), (96, 2), (96, 255))):
        draw_picture(96, 80, seed=i).save(tmp_path / 'pictures' / f'{i}.jpg')
        labels = np.full((80, width), label, dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / 'labels' / f'{i}.png')
    draw_picture(96, 80, seed=9).save(tmp_path / 'pictures' / 'unlabelled.jpg')
    status, _, problems = check(SEGMENTATION, '--splits', 'train')
    assert status == 1
    assert len(problems) == 3, problems
    assert any('labels of another size' in line and '1.png 90 x 80' in line for line in problems)
    assert any('a pixel has the label 2, of 2 classes' in line for line in problems)
    assert any('unlabelled.png: FileNotFoundError' in line for line in problems)


def test_data_that_are_not_there(check):
    pytest.importorskip('mmdet')
    status, _, problems = check(DETECTION, '--splits', 'train')
    assert status == 1
    assert len(problems) == 1 and 'data set cannot be made: FileNotFoundError' in problems[0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['none.py'], 'none.py: no such config'),
        (['none.py', '--jobs', '0'], '--jobs must be at least 1'),
        ([], 'required: config'),
    ],
)
def test_usage(root, monkeypatch, capsys, arguments, message):
    monkeypatch.syspath_prepend(str(root / 'tools'))
    monkeypatch.setattr('sys.argv', ['check_data.py', *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module('check_data').main()
    assert message in f'{end.value.code} {capsys.readouterr().err}'
