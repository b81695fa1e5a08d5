"""The report of the demo of segmentation: scores, tables and pictures."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('matplotlib')
pytest.importorskip('mmdet')
coco_mask = pytest.importorskip('pycocotools.mask')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from demo_data.coco import encode_rle  # noqa: E402
from demo_data.nuclei_semantic import class_map, save_labels  # noqa: E402
from demo_run import segmentation as study  # noqa: E402
from demo_run import segmentation_pictures as pictures  # noqa: E402
from demo_run import segmentation_plan as plan  # noqa: E402
from demo_run import segmentation_report as report  # noqa: E402
from demo_run import segmentation_scores as scores  # noqa: E402
from demo_run.chains import chain_folder  # noqa: E402
from demo_run.pictures import WRONG  # noqa: E402

from .test_demo import has_colour  # noqa: E402

# ------------------------------------------------------------------------------------------ scores


def test_ious_of_classes_by_hand():
    truth = [np.array([[1, 1, 2, 0]]), np.array([[2, 2, 3, 1]])]
    found = [np.array([[1, 2, 2, 3]]), np.array([[2, 1, 1, 1]])]
    # 1: 2 of 5 pixels; 2: 2 of 4; 3: 0 of 1, as the unlabelled one does not count; 4: nowhere
    ious = scores.class_ious(zip(truth, found), 4)
    np.testing.assert_allclose(ious, [40, 50, 0, np.nan])
    assert scores.majority_ious(truth, 3) == pytest.approx([300 / 7, 0, 0])


def test_ious_are_those_of_mmseg():
    metrics = pytest.importorskip('mmseg.evaluation.metrics')
    random = np.random.default_rng(0)
    truths, founds = random.integers(0, 4, (2, 3, 20, 30)), random.integers(1, 4, (2, 3, 20, 30))
    maps = list(zip(truths[0], founds[0]))
    areas = [
        metrics.IoUMetric.intersect_and_union(
            torch.from_numpy(found) - 1, torch.from_numpy(np.where(truth, truth - 1, 255)), 3, 255
        )
        for truth, found in maps
    ]
    shared, either = (sum(area[i] for area in areas) for i in range(2))
    np.testing.assert_allclose(scores.class_ious(maps, 3), 100 * shared / either, rtol=1e-5)


def test_missing_map_is_told(tmp_path):
    save_labels(tmp_path / 'truth/a.png', np.ones((4, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match=r'found/a\.png'):
        scores.read_maps(tmp_path / 'truth', tmp_path / 'found')


# ------------------------------------------------------------------------------------------ report


def nucleus(left: int, top: int = 30) -> np.ndarray:
    mask = np.zeros((128, 128), bool)
    mask[top : top + 24, left : left + 24] = True
    return mask


def write_data(folder: Path) -> None:
    """Two tiles, each with a nucleus on the left and one on the right."""
    document = {'images': [], 'annotations': []}
    for number, name in enumerate(('a.png', 'b.png'), start=1):
        instances = nucleus(10) + 2 * nucleus(90)
        save_labels(folder / study.DATA / study.TRUTH / name, class_map(instances))
        image = folder / study.DATA / report.PICTURES / name
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((128, 128, 3), 40, np.uint8)).save(image)
        document['images'].append({'id': number, 'file_name': name})
        for left in (10, 90):
            annotation = {'image_id': number, 'segmentation': encode_rle(nucleus(left))}
            document['annotations'].append(annotation)
    path = folder / study.INSTANCE_DATA / 'annotations/val.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document))


def write_chain(model: plan.Model, folder: Path, value: float) -> None:
    """What the tasks of a chain leave behind; found are the left nucleus and a wrong one."""
    folder.mkdir(parents=True)
    for task, result in (
        ('train', {'loss': 1.0}),
        ('evaluate', dict.fromkeys(model.metrics, value)),
    ):
        content = {'key': '', 'seconds': 100.0, 'result': result}
        (folder / f'{task}.json').write_text(json.dumps(content))
    if model.semantic:
        for name in ('a.png', 'b.png'):
            save_labels(folder / study.PREDICTIONS / name, class_map(nucleus(10).astype(int)))
    else:
        found = []
        for image in (1, 2):
            for score, left, top in ((0.9, 11, 30), (0.8, 50, 80), (0.1, 90, 30)):
                rle = coco_mask.encode(np.asfortranarray(nucleus(left, top).astype(np.uint8)))
                rle['counts'] = rle['counts'].decode()
                found.append({'image_id': image, 'segmentation': rle, 'score': score})
        (folder / f'{study.PREDICTIONS}.segm.json').write_text(json.dumps(found))
    log = folder / 'train/20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    records = [{'loss': 2.0 - i / 10, 'step': i} for i in range(5)]
    records += [{model.validation: 0.1 * step / model.scale, 'step': step} for step in (2, 4)]
    log.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A run with --compare: pre-trained 30, 32, 37 of everything, and 10, 11, 12 less."""
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    write_data(tmp_path)
    for name, start, seed in plan.chains(compare=True):
        value = (30.0, 32.0, 37.0)[seed] - (10 + seed if start == 'scratch' else 0)
        write_chain(plan.MODELS[name], tmp_path / 'work' / chain_folder(name, start, seed), value)
    return tmp_path / 'work'


def test_report_of_a_comparison(finished):
    table = report.write_report(finished, compare=True)
    assert (finished / 'compare.md').read_text() == table
    for row in (
        '| model | start | mIoU | background | interior | border | training |',
        '| UPerNet | pre-trained | ' + '33.0 ± 3.6 | ' * 4 + '100 s |',
        '| MaskDINO, semantic | from scratch | ' + '22.0 ± 2.6 | ' * 4 + '100 s |',
        '| MaskDINO, semantic | difference | ' + '+11.0 ± 1.0 | ' * 4 + '|',
        '| model | start | mask AP | mask AP50 | box AP | box AP50 | training |',
        '| MaskDINO, instances | difference | ' + '+11.0 ± 1.0 | ' * 4 + '|',
    ):
        assert row in table.splitlines()
    background = 1 - 2 * 24**2 / 128**2
    assert '2 tiles of the held-out region with 4 nuclei' in table and '3 seeds' in table
    assert f'Background everywhere would have an mIoU of {100 * background / 3:.1f}.' in table
    summary = json.loads((finished / 'summary.json').read_text())
    assert len(summary['rows']) == 6 and summary['seeds'] == [0, 1, 2]
    assert summary['pretrained_minus_scratch'][2]['mask AP']['values'] == [10, 11, 12]
    assert summary['background_everywhere']['interior'] == 0
    assert min(Image.open(finished / 'curves.png').size) > 300


def test_overlays_show_what_was_found(finished):
    tiles = report.read_tiles(finished)
    assert [tile.name for tile in tiles] == ['a.png', 'b.png']
    assert [len(tile.found) for tile in tiles] == [2, 2]  # the unsure one is left out
    assert list(tiles[0].maps) == ['UPerNet', 'MaskDINO, semantic']
    report.write_report(finished, compare=True)
    picture, fifth = finished / 'overlays.png', 1 / 5

    def shown(column, colour, part=(0, 1)):
        box = ((column + part[0]) * fifth, 0, (column + part[1]) * fifth, 1)
        return has_colour(picture, colour, box)

    def mixed(colour):  # over the grey of the tiles
        numbers = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        parts = (round((1 - pictures.OPACITY) * 40 + pictures.OPACITY * n) for n in numbers)
        return '#' + ''.join(f'{part:02x}' for part in parts)

    for colour in pictures.CLASS_COLOURS[1:]:
        assert not shown(0, mixed(colour))
        assert shown(1, mixed(colour), (0, 0.5)) and shown(1, mixed(colour), (0.5, 1))
        assert shown(2, mixed(colour), (0, 0.5)) and not shown(2, mixed(colour), (0.5, 1))
    assert shown(4, WRONG) and not shown(3, WRONG)


def test_report_of_one_run(finished):
    (finished / 'compare.md').write_text('of another run')
    table = report.write_report(finished, compare=False)
    assert '| UPerNet | pre-trained | 30.0 | 30.0 | 30.0 | 30.0 | 100 s |' in table
    assert 'scratch' not in table and '±' not in table and '1 seed,' in table
    assert not (finished / 'compare.md').exists()
    assert json.loads((finished / 'summary.json').read_text())['pretrained_minus_scratch'] == []
    (finished / chain_folder('upernet', 'pretrained', 0) / 'evaluate.json').unlink()
    with pytest.raises(FileNotFoundError):
        report.write_report(finished, compare=False)
