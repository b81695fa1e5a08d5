"""Classes of the pixels of nuclei: maps made by hand, tiles of a picture made here, real ones."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from demo_data import nuclei, nuclei_semantic  # noqa: E402
from demo_data.archives import ArchiveReader  # noqa: E402

from .test_demo_data import files_of, make_wheel, nuclei_wheel, png_bytes  # noqa: E402, F401


def read_rows(text: str) -> np.ndarray:
    return np.array([[int(digit) for digit in row] for row in text.split()])


NUCLEI = read_rows("""
    000000000000
    011111222220
    011111222220
    011111222220
    011111222220
    011111222220
    000000000000
""")
# 1 background, 2 inside, 3 border
BAND_OF_1 = read_rows("""
    111111111111
    133333333331
    132223322231
    132223322231
    132223322231
    133333333331
    111111111111
""")
BAND_OF_2 = read_rows("""
    111111111111
    133333333331
    133333333331
    133233332331
    133333333331
    133333333331
    111111111111
""")


@pytest.mark.parametrize(('width', 'expected'), [(1, BAND_OF_1), (2, BAND_OF_2)])
def test_border_is_a_band_inside_each_nucleus(width, expected):
    """Also between two that touch."""
    found = nuclei_semantic.class_map(NUCLEI, width)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_distance_is_euclidean():
    one = np.ones((9, 9), int)
    one[4, 4] = 0
    found = nuclei_semantic.class_map(np.pad(one, 5, mode='edge'), 3)[5:-5, 5:-5]
    distance = np.hypot(*(np.mgrid[:9, :9] - 4))
    np.testing.assert_array_equal(found == nuclei_semantic.BORDER, (distance > 0) & (distance <= 3))


def test_what_may_be_border_beyond_the_sides_is_unlabelled():
    """The nucleus goes on for one pixel to the left of the region, or for many: nobody knows."""
    found = nuclei_semantic.class_map(
        read_rows("""
            1111110
            1111110
            1111110
            1111110
            1111110
            0000000
        """),
        width=2,
    )
    expected = read_rows("""
        0000331
        0000331
        0022331
        3333331
        3333331
        1111111
    """)
    np.testing.assert_array_equal(found, expected)


def build(wheel, folder):
    folder.mkdir()
    counts, made = nuclei_semantic.build(folder, ArchiveReader({nuclei.PACKAGE: wheel}))
    assert set(made) == {(nuclei.PACKAGE, nuclei.PICTURE), (nuclei.PACKAGE, nuclei.LABELS)}
    return counts


def read_labels(path: Path) -> np.ndarray:
    with Image.open(path) as png:
        assert png.mode == 'L'
        return np.asarray(png)


def test_tiles_are_those_of_the_instances(nuclei_wheel, tmp_path):  # noqa: F811
    wheel, labels = nuclei_wheel
    counts = build(wheel, tmp_path / 'classes')
    assert (counts['train_images'], counts['val_images']) == (117, 4)
    (tmp_path / 'nuclei').mkdir()
    nuclei.build(tmp_path / 'nuclei', ArchiveReader({nuclei.PACKAGE: wheel}))
    for split, (region, _) in nuclei.SPLITS.items():
        name = nuclei_semantic.FOLDERS[split]
        images = files_of(tmp_path / 'classes/images' / name)
        assert images == files_of(tmp_path / 'nuclei' / split)
        classes = np.zeros_like(labels, dtype=np.uint8)
        region.crop(classes)[:] = nuclei_semantic.class_map(region.crop(labels))
        paths = sorted((tmp_path / 'classes/annotations' / name).iterdir())
        assert [path.name for path in paths] == sorted(images)
        for path in paths:
            top, left = int(path.stem[8:11]), int(path.stem[-3:])
            tile = np.s_[top : top + 128, left : left + 128]
            found = read_labels(path)
            np.testing.assert_array_equal(found, classes[tile])
            np.testing.assert_array_equal(found == nuclei_semantic.BACKGROUND, labels[tile] == 0)


@pytest.mark.parametrize('changed', ['train', 'val'])
def test_no_class_depends_on_the_other_region(changed, nuclei_wheel, tmp_path):  # noqa: F811
    wheel, labels = nuclei_wheel
    reader = ArchiveReader({nuclei.PACKAGE: wheel})
    build(wheel, tmp_path / 'before')
    labels = labels.copy()
    nuclei.SPLITS[changed][0].crop(labels)[:] = 0
    members = [
        (nuclei.PICTURE, reader.read(nuclei.PACKAGE, nuclei.PICTURE)),
        (nuclei.LABELS, png_bytes(labels, tmp_path / 'labels.png')),
    ]
    other, _ = make_wheel(tmp_path / 'other', nuclei.PACKAGE, members=members)
    build(other, tmp_path / 'after')
    for split, name in nuclei_semantic.FOLDERS.items():
        before, after = (
            files_of(tmp_path / f'{when}/annotations/{name}') for when in ('before', 'after')
        )
        assert (before == after) == (split != changed)


def test_real_classes(demo_data):
    """As mmseg reads them by the config."""
    mmseg = pytest.importorskip('mmseg.datasets')
    from .tiny_configs import parse

    cfg = parse(ROOT / 'configs/_base_/datasets/nuclei_semantic.py')
    assert tuple(cfg.metainfo.classes) == nuclei_semantic.CLASSES
    for key, number in (('train_dataloader', 117), ('val_dataloader', 4)):
        settings = cfg[key].dataset.to_dict()
        settings.pop('type')
        settings.update(data_root=str(demo_data / 'nuclei_semantic'), pipeline=[])
        dataset = mmseg.BaseSegDataset(**settings)
        assert len(dataset) == number
        shares = np.zeros(4)
        for i in range(number):
            info = dataset[i]
            labels = read_labels(info['seg_map_path'])
            assert labels.shape == (128, 128) == Image.open(info['img_path']).size
            shares += np.bincount(labels.ravel(), minlength=4) / labels.size / number
        assert 0.75 < shares[1] < 0.85  # background
        assert 0.05 < shares[3] < shares[2] < 0.12 and 0 < shares[0] < 0.01
