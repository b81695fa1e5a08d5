"""Data sets of trees: boxes, tiles, rotation and DOTA's format; counts on the real photographs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from demo_data import aerial, aerial_rotated, archives  # noqa: E402
from demo_data.archives import ArchiveReader  # noqa: E402
from demo_data.pictures import Region  # noqa: E402

from .test_demo_data import read_member  # noqa: E402


def test_boxes_of_voc_count_pixels_from_one():
    xml = b'<a><object><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>4</xmax><ymax>8</ymax></bndbox>'
    assert aerial.read_boxes(xml + b'</object></a>').tolist() == [[0, 2, 4, 8]]
    assert aerial.read_boxes(b'<a></a>').shape == (0, 4)


def test_slivers_of_trees_are_dropped():
    tile = Region(100, 50, 228, 178)
    boxes = np.array(
        [
            [110.0, 60, 130, 80],  # whole
            [90, 60, 110, 80],  # half of it to the left
            [85, 60, 105, 80],  # a quarter: just enough
            [84, 60, 104.9, 80],  # less
            [220, 170, 240, 180.5],  # the corner: 0.4 of one side, 0.76 of the other
            [300, 60, 320, 80],  # elsewhere
        ]
    )
    found = aerial.tile_boxes(boxes, tile)
    assert [a['instance'] for a in found] == [1, 2, 3, 5]
    assert [a['bbox'] for a in found] == [
        [10, 10, 20, 20],
        [0, 10, 10, 20],
        [0, 10, 5, 20],
        [120, 120, 8, 8],
    ]
    assert [a['area'] for a in found] == [400, 200, 100, 64]


@pytest.mark.parametrize('angle', [0, 10, 40, 70, 90, 200])
def test_rotation_takes_boxes_along(angle):
    """The pixels under a rotated box are those of the box, and the way back ends where it began."""
    rng = np.random.default_rng(0)
    picture = np.zeros((80, 121, 3), np.uint8)
    boxes = np.array([[10.0, 12, 40, 30], [60, 50, 80, 78], [0, 60, 20, 80]])
    colours = rng.integers(100, 256, (len(boxes), 3))
    for (left, top, right, bottom), colour in zip(boxes.astype(int), colours):
        picture[top:bottom, left:right] = colour
    rotated, corners = aerial_rotated.rotate(picture, boxes, angle)
    height, width = rotated.shape[:2]
    assert corners.min() > -1e-6 and (corners <= np.array([width, height]) + 1e-6).all()
    for (left, top, right, bottom), box, colour in zip(boxes, corners, colours):
        sides = np.linalg.norm(box - np.roll(box, -1, axis=0), axis=1)
        np.testing.assert_allclose(sides, [right - left, bottom - top] * 2, atol=1e-6)
        for u, v in rng.uniform(0.15, 0.85, (20, 2)):  # points well inside
            x, y = box[0] + u * (box[1] - box[0]) + v * (box[3] - box[0])
            np.testing.assert_allclose(rotated[int(y), int(x)], colour, atol=2)
        middle = box.mean(axis=0)  # and just outside there is something else
        for edge in (box + np.roll(box, -1, axis=0)) / 2:
            x, y = edge + 2.5 * (edge - middle) / np.linalg.norm(edge - middle)
            if 0 <= x < width and 0 <= y < height:
                assert np.abs(rotated[int(y), int(x)].astype(int) - colour).max() > 30
    back = aerial_rotated.rotation(-angle) @ (corners - np.array([width, height]) / 2)[..., None]
    back = back[..., 0] + np.array([121, 80]) / 2
    np.testing.assert_allclose(back[:, 0], boxes[:, :2], atol=1e-6)
    np.testing.assert_allclose(back[:, 2], boxes[:, 2:], atol=1e-6)


def test_rotation_is_counter_clockwise_and_fills_with_the_mean():
    picture = np.full((40, 60, 3), 100, np.uint8)
    rotated, corners = aerial_rotated.rotate(picture, np.array([[50.0, 15, 60, 25]]), 90)
    assert rotated.shape == (60, 40, 3)
    x, y = corners[0].mean(axis=0)  # from the right border to the top
    assert abs(x - 20) < 1 and y < 8
    rotated, _ = aerial_rotated.rotate(picture, np.zeros((0, 4)), 30)
    assert (rotated == 100).all()


def test_labels_are_those_of_dota(tmp_path):
    corners = np.array([[[1.0, 2], [3, 4.126], [5, 6], [-7, 8]]])
    aerial_rotated.write_labels(tmp_path / 'labelTxt/a.txt', corners)
    lines = (tmp_path / 'labelTxt/a.txt').read_text().splitlines()
    assert lines[:2] == ['imagesource:aerial', 'gsd:0.2']
    assert lines[2:] == ['1.00 2.00 3.00 4.13 5.00 6.00 -7.00 8.00 tree 0']


# ---- the real photographs -----------------------------------------------------------------------


def read_coco(folder, split):
    return json.loads((folder / 'annotations' / f'{split}.json').read_text())


def test_real_trees(demo_data):
    folder = demo_data / 'aerial'
    counts = json.loads((folder / 'manifest.json').read_text())['counts']
    assert counts['train_trees'] + counts['val_trees'] == 61 + 37 + 279 + 574 == 951
    assert counts['val_trees'] == 574
    for split in ('train', 'val'):
        document = read_coco(folder, split)
        images = {image['id']: image for image in document['images']}
        assert min(images) == 1 and len(images) == counts[f'{split}_images']
        assert sorted(image['file_name'] for image in images.values()) == sorted(
            path.name for path in (folder / split).iterdir()
        )
        ids = [a['id'] for a in document['annotations']]
        assert ids == list(range(1, counts[f'{split}_instances'] + 1))
        for annotation in document['annotations']:
            image = images[annotation['image_id']]
            left, top, width, height = annotation['bbox']
            assert 0 <= left < left + width <= image['width'] <= 128
            assert 0 <= top < top + height <= image['height'] <= 128
        # Every tree is in a tile, and no more often than tiles overlap.
        photographs = {i: image['file_name'].split('_y')[0] for i, image in images.items()}
        seen = {(photographs[a['image_id']], a['instance']) for a in document['annotations']}
        assert len(seen) == counts[f'{split}_trees']
    empty = set(images) - {a['image_id'] for a in document['annotations']}
    assert empty and {image['width'] for image in images.values()} == {127, 128}
    assert {image['height'] for image in images.values()} == {123, 124}


def test_real_tile_of_the_photograph(demo_data):
    """The training tile at the origin: its pixels, and the first tree of the list that it shows."""
    original = read_member('deepforest', 'deepforest/data/OSBS_029.png')[:256, :256].astype(float)
    tile = np.array(Image.open(demo_data / 'aerial/train/osbs_y0000_x0000.png'))
    blocks = original.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(tile - blocks).max() <= 0.5
    document = read_coco(demo_data / 'aerial', 'train')
    [image] = [i for i in document['images'] if i['file_name'] == 'osbs_y0000_x0000.png']
    [tree] = [
        a for a in document['annotations'] if a['image_id'] == image['id'] and a['instance'] == 1
    ]
    assert tree['bbox'] == [101, 33, 12.5, 12]  # 203..227, 67..90 in the file


def test_real_held_out_photograph_is_nowhere_else(demo_data):
    held_out = aerial.PHOTOGRAPHS['val']['held_out']
    assert '528000' in held_out and held_out not in aerial.PHOTOGRAPHS['train'].values()
    sources = json.loads((demo_data / 'photographs/manifest.json').read_text())['sources']
    assert sources and not any(held_out in source['member'] for source in sources)
    for source in json.loads((demo_data / 'aerial/manifest.json').read_text())['sources']:
        assert ('val tiles' in source['made'] or source['made'] == 'their boxes') == (
            held_out in source['member'] or source['member'].endswith('.xml')
        )
    for split, part in (('train', False), ('val', True)):
        names = [path.name for path in (demo_data / 'aerial' / split).iterdir()]
        assert names and all(name.startswith('held_out') == part for name in names)


def test_real_rotated_trees(demo_data):
    pytest.importorskip('mmrotate')
    folder = demo_data / 'aerial_rotated'
    for split, angles in aerial_rotated.ANGLES.items():
        raw = folder / 'raw' / split
        for path in (raw / 'labelTxt').iterdir():
            name, _, angle = path.stem.rpartition('_')
            assert int(angle) in angles
            assert (raw / 'images' / f'{path.stem}.png').exists()
            lines = path.read_text().splitlines()
            assert lines[1].startswith('gsd:') and all(
                line.split()[8:] == ['tree', '0'] for line in lines[2:]
            )
            # Rotating back, the sides are those of the list, each along an axis.
            corners = np.array([line.split()[:8] for line in lines[2:]], float).reshape(-1, 4, 2)
            back = corners @ aerial_rotated.rotation(-int(angle)).T
            stem = aerial.PHOTOGRAPHS[split][name]
            reader = ArchiveReader(
                {'deepforest': ROOT / 'data/.archives' / archives.ARCHIVES['deepforest'].filename}
            )
            boxes = aerial.read_boxes(reader.read('deepforest', aerial.member(stem, 'xml'))) / 2
            assert len(boxes) == len(back)
            size = np.array(Image.open(raw / 'images' / f'{path.stem}.png').size)
            original = np.array(
                Image.open(demo_data / 'aerial' / split / f'{name}_y0000_x0000.png')
            )
            assert min(original.shape[:2]) > 110
            shift = boxes[:, :2].mean(axis=0) - back[:, 0].mean(axis=0)
            np.testing.assert_allclose(back[:, 0] + shift, boxes[:, :2], atol=0.6)
            np.testing.assert_allclose(back[:, 2] + shift, boxes[:, 2:], atol=0.6)
            # And the pixels there are those of the upright photograph.
            rotated = np.asarray(
                Image.open(raw / 'images' / f'{path.stem}.png').convert('RGB')
            ).astype(float)
            points = np.stack(np.meshgrid(np.arange(20, 110, 9), np.arange(20, 110, 9)), -1) + 0.5
            where = (points.reshape(-1, 2) - shift) @ aerial_rotated.rotation(int(angle)).T
            assert (where >= 0).all() and (where < size).all()
            columns, rows = np.floor(where).astype(int).T
            x, y = points.reshape(-1, 2).astype(int).T
            there, here = rotated[rows, columns], original[y, x].astype(float)
            for channel in range(3):
                assert np.corrcoef(there[:, channel], here[:, channel])[0, 1] > 0.8


def test_real_patches_are_read_by_mmrotate(demo_data):
    pytest.importorskip('mmrotate')
    from mmrotate.datasets import DOTADataset

    counts = json.loads((demo_data / 'aerial_rotated/manifest.json').read_text())['counts']
    for split in aerial_rotated.ANGLES:
        dataset = DOTADataset(
            data_root=str(demo_data / 'aerial_rotated'),
            ann_file=f'{split}/annfiles/',
            data_prefix=dict(img_path=f'{split}/images/'),
            metainfo=dict(classes=('tree',)),
            test_mode=True,
            pipeline=[],
        )
        dataset.full_init()
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert len(infos) == counts[f'{split}_images']
        assert sum(len(i['instances']) for i in infos) == counts[f'{split}_instances']
        for info in infos:
            with Image.open(info['img_path']) as png:
                assert png.size == (128, 128)
            assert all(item['bbox_label'] == 0 for item in info['instances'])
