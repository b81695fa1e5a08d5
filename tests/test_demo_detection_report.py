"""The report of the demo on aerial photographs: scenes, matches, tables and pictures."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('matplotlib')
pytest.importorskip('mmdet')
pytest.importorskip('shapely')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from demo_run import aerial as study  # noqa: E402
from demo_run import aerial_pictures as pictures  # noqa: E402
from demo_run import aerial_plan as plan  # noqa: E402
from demo_run import aerial_report as report  # noqa: E402
from demo_run import aerial_scenes as scenes  # noqa: E402
from demo_run.chains import chain_folder  # noqa: E402

from .test_demo import has_colour  # noqa: E402

# ------------------------------------------------------------------------------------------ scenes


def square(left, top, side=20):
    return scenes.upright_corners((left, top, side, side))


def test_corners_of_boxes():
    assert square(2, 3).tolist() == [[2, 3], [22, 3], [22, 23], [2, 23]]
    flat = scenes.rotated_corners((10, 20, 6, 2, 0))
    np.testing.assert_allclose(flat, [[7, 19], [13, 19], [13, 21], [7, 21]])
    turned = scenes.rotated_corners((10, 20, 6, 2, np.pi / 2))
    np.testing.assert_allclose(turned[0], [11, 17])  # clockwise, as y points down


def test_corners_are_those_of_mmrotate():
    boxes = pytest.importorskip('mmrotate.structures.bbox')
    box = [30.0, 40, 20, 8, 0.7]
    theirs = boxes.rbox2qbox(torch.tensor([box]))[0].reshape(4, 2).numpy()
    ours = scenes.rotated_corners(box)
    np.testing.assert_allclose(sorted(ours.tolist()), sorted(theirs.tolist()), rtol=1e-5)


def test_ious_and_matches():
    diamond = scenes.rotated_corners((10, 10, 20, 20, np.pi / 4))
    ious = scenes.box_ious([square(0, 0), diamond], [square(0, 0), square(10, 0)])
    octagon = 8 * (np.sqrt(2) - 1) * 100  # what a square shares with itself turned by 45 degrees
    expected = [[1, 1 / 3], [octagon / (800 - octagon), ious[1, 1]]]
    np.testing.assert_allclose(ious, expected, rtol=1e-6)
    assert scenes.box_ious([], [square(0, 0)]).shape == (0, 1)

    scene = scenes.Scene('a', np.zeros((64, 64, 3), np.uint8), trees=[square(0, 0), square(40, 0)])
    # The second is closer to the first tree, but less sure; the fourth is off by too much.
    scene.found = [
        (square(3, 0), 0.9),
        (square(0, 0), 0.8),
        (square(40, 2), 0.7),
        (square(20, 30), 0.6),
    ]
    assert scenes.match(scene) == {0: 0, 2: 1}


def test_tiles_are_stitched():
    black = np.zeros((32, 32, 3), np.uint8)
    tiles = [
        scenes.Scene('a', black + 1, 0, 0, [square(2, 2)], [(square(2, 2), 0.5)]),
        scenes.Scene('b', black + 2, 24, 0, [square(1, 2)], [(square(-20, 2), 0.8)]),
    ]
    whole = scenes.stitch(tiles)
    assert whole.picture.shape == (32, 56, 3) and len(whole.found) == 2
    assert whole.trees[1].tolist() == square(25, 2).tolist()
    merged = scenes.stitch(tiles, trees=[square(3, 2)])
    assert len(merged.trees) == 1
    [(box, score)] = merged.found  # those at 2 and 4 are one tree, seen twice
    assert score == 0.8 and box.tolist() == square(4, 2).tolist()


# ------------------------------------------------------------------------------------------ report


def write_upright(folder: Path) -> None:
    """Tiles with five trees each, as `demo_data.aerial` writes them."""
    images, annotations = [], []
    (folder / 'val').mkdir(parents=True)
    (folder / 'annotations').mkdir()
    for number in range(1, 5):
        name = f'held_out_{number}.png'
        Image.fromarray(np.full((128, 128, 3), 40, np.uint8)).save(folder / 'val' / name)
        left = 128 * (number - 1)
        images.append({'id': number, 'file_name': name, 'region': [left, 0, left + 128, 128]})
        for i in range(5):
            annotations.append({'image_id': number, 'bbox': [4 + 24 * i, 10, 18, 18]})
    document = {'images': images, 'annotations': annotations}
    (folder / 'annotations/val.json').write_text(json.dumps(document))


def write_oriented(folder: Path) -> None:
    """The same in DOTA's format, two of the patches overlapping."""
    (folder / 'val/images').mkdir(parents=True)
    (folder / 'val/annfiles').mkdir()
    (folder / 'raw/val/labelTxt').mkdir(parents=True)
    lines = [
        ' '.join([*map(str, scenes.upright_corners((4 + 24 * i, 10, 18, 18)).ravel()), 'tree', '0'])
        for i in range(5)
    ]
    for left in (0, 96):
        name = f'held_out_20__128__{left}___0'
        Image.fromarray(np.full((128, 128, 3), 40, np.uint8)).save(
            folder / f'val/images/{name}.png'
        )
        (folder / f'val/annfiles/{name}.txt').write_text('\n'.join(lines) + '\n')
    header = ['imagesource:aerial', 'gsd:0.2']
    (folder / 'raw/val/labelTxt/held_out_20.txt').write_text('\n'.join([*header, *lines]) + '\n')


def write_chain(name: str, folder: Path, values: dict, images: list) -> None:
    """What the tasks of a chain leave behind: each tile has a hit and a false alarm."""
    for task, result in (('train', {'loss': 1.0}), ('evaluate', values)):
        folder.mkdir(parents=True, exist_ok=True)
        content = {'key': '', 'seconds': 100.0, 'result': result}
        (folder / f'{task}.json').write_text(json.dumps(content))
    found = []
    for image in images:
        for score, x in ((0.9, 4), (0.8, 60), (0.1, 30)):
            box = [x, 10, 18, 18] if x == 4 else [x, 90, 18, 18]
            if name == 'rotated':
                box = [box[0] + 9, box[1] + 9, 18, 18, 0.0]
            found.append({'image_id': image, 'bbox': box, 'score': score})
    (folder / f'{study.PREDICTIONS}.bbox.json').write_text(json.dumps(found))
    log = folder / 'train/20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    records = [{'loss': 2.0 - i / 10, 'step': i} for i in range(5)]
    if name == 'detection':
        records += [{'coco/bbox_mAP': 0.1 * epoch, 'step': epoch} for epoch in (1, 2)]
    log.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Runs of both studies with --compare: pre-trained AP of 30, 32, 37, and 10, 11, 12 less."""
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    monkeypatch.setattr(report, 'TILES', 2)
    folder = tmp_path / 'data/demo'
    write_upright(folder / 'aerial')
    write_oriented(folder / 'aerial_rotated')
    patches = [f'held_out_20__128__{left}___0' for left in (0, 96)]
    for name, task in plan.STUDIES.items():
        for triple in plan.chains(name, compare=True):
            seed = triple[2]
            value = (30.0, 32.0, 37.0)[seed] - (10 + seed if triple[1] == 'scratch' else 0)
            write_chain(
                name,
                tmp_path / name / chain_folder(*triple),
                dict.fromkeys(task.metrics.values(), value),
                [1, 2, 3, 4] if name == 'detection' else patches,
            )
    return tmp_path


def test_report_of_a_comparison(finished):
    work = finished / 'detection'
    table = report.write_report('detection', work, compare=True)
    assert (work / 'compare.md').read_text() == table
    for row in (
        '| Faster R-CNN | pre-trained | 33.0 ± 3.6 | 33.0 ± 3.6 | 100 s |',
        '| DINO | from scratch | 22.0 ± 2.6 | 22.0 ± 2.6 | 100 s |',
        '| DINO | difference | +11.0 ± 1.0 | +11.0 ± 1.0 | |',
    ):
        assert row in table
    assert '4 tiles of the held-out photograph with 20 boxes' in table and '3 seeds' in table
    summary = json.loads((work / 'summary.json').read_text())
    assert len(summary['rows']) == 4 and summary['seeds'] == [0, 1, 2]
    assert summary['pretrained_minus_scratch'][0]['AP']['values'] == [10, 11, 12]
    for name in ('detections', 'photograph', 'curves'):
        assert min(Image.open(work / f'{name}.png').size) > 300
    for colour in (pictures.TREE, pictures.MISSED, pictures.WRONG):
        assert has_colour(work / 'detections.png', colour, (0, 0.4, 1, 1))
    assert not has_colour(work / 'detections.png', pictures.WRONG, (0, 0, 1, 0.3))


def test_report_of_one_run(finished):
    work = finished / 'rotated'
    (work / 'compare.md').write_text('of another run')
    table = report.write_report('rotated', work, compare=False)
    assert '| Rotated Faster R-CNN | pre-trained | 30.0 | 100 s |' in table
    assert 'scratch' not in table and '±' not in table and '1 seed,' in table
    assert not (work / 'compare.md').exists()
    assert json.loads((work / 'summary.json').read_text())['pretrained_minus_scratch'] == []
    shutil.rmtree(work / 'rotated-faster-rcnn')
    with pytest.raises(FileNotFoundError):
        report.write_report('rotated', work, compare=False)


def test_whole_photograph_has_each_tree_once(finished):
    task, folder = plan.STUDIES['rotated'], finished / 'data/demo/aerial_rotated'
    run = finished / 'rotated/rotated-faster-rcnn/pretrained/seed0/val.bbox.json'
    tiles = scenes.read_tiles(folder, run, 0.5, oriented=True)
    assert [(t.left, t.top, len(t.trees), len(t.found)) for t in tiles] == [
        (0, 0, 5, 2),
        (96, 0, 5, 2),
    ]
    whole = report.join(task, folder, tiles)
    assert whole.picture.shape == (128, 224, 3) and len(whole.trees) == 5
    assert len(whole.found) == 4 and set(scenes.match(whole).values()) == {0, 4}
