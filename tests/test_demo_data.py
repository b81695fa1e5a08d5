"""tools/prepare_demo_data.py: archives, tiles and masks made here; counts on the real ones."""

import hashlib
import json
import socket
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import prepare_demo_data as prepare  # noqa: E402
from demo_data import (  # noqa: E402
    archives,
    coco,
    nuclei,
    photographs,
    pictures,
)
from demo_data.archives import Archive, ArchiveError, ArchiveReader, DownloadError  # noqa: E402
from demo_data.pictures import Region  # noqa: E402


def png_bytes(picture, path):
    Image.fromarray(picture).save(path)
    return path.read_bytes()


def make_wheel(folder, package='tinypics', version='1.0', members=()):
    """A wheel that pip accepts, and its pin."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{package}-{version}-py3-none-any.whl'
    info = f'{package}-{version}.dist-info'
    with zipfile.ZipFile(path, 'w') as file:
        for name, data in members:
            file.writestr(name, data)
        file.writestr(
            f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n'
        )
        file.writestr(
            f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
        )
        file.writestr(f'{info}/RECORD', '')
        file.writestr(f'{info}/LICENSE', 'do what you like')
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    licence = (f'{info}/LICENSE',)
    return path, Archive(package, version, path.name, len(data), digest, 'MIT', licence)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip sees the wheels of one folder and nothing else."""
    folder = tmp_path / 'index'
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    return folder


@pytest.fixture
def nuclei_wheel(tmp_path, monkeypatch):
    """A picture as large as the real one: blobs across tile borders, a ring, one in two parts."""
    rng = np.random.default_rng(0)
    labels = np.zeros((512, 512), np.uint16)
    for number, centre in enumerate(range(20, 500, 48), start=1):
        labels[centre - 9 : centre + 9, centre - 12 : centre + 12] = number  # the diagonal
        labels[centre - 9 : centre + 9, 372:396] = 20 + number  # across the border of the regions
    labels[100:140, 200:240] = 50
    labels[110:130, 210:230] = 0  # a hole
    labels[300:310, 30:60] = labels[320:330, 30:60] = 51  # two parts
    picture = (rng.integers(0, 40, labels.shape) + 120 * (labels > 0)).astype(np.uint16)
    members = [
        (nuclei.PICTURE, png_bytes(picture, tmp_path / 'picture.png')),
        (nuclei.LABELS, png_bytes(labels, tmp_path / 'labels.png')),
    ]
    path, archive = make_wheel(tmp_path / 'wheels', nuclei.PACKAGE, '0.9.2', members)
    monkeypatch.setitem(archives.ARCHIVES, nuclei.PACKAGE, archive)
    return path, labels


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob('*'))
        if p.is_file()
    }


# ---- archives ----------------------------------------------------------------------------------


def test_fetch_gets_checks_and_keeps_a_wheel(index, tmp_path, monkeypatch, capsys):
    _, archive = make_wheel(index, members=[('pics/a.txt', b'hello')])
    cache = tmp_path / 'cache'
    path = archives.fetch(archive, cache)
    assert path == cache / archive.filename
    assert [p.name for p in cache.iterdir()] == [archive.filename]  # nothing partial is left
    assert f'{archive.package} 1.0' in capsys.readouterr().out
    assert ArchiveReader({'tinypics': path}).read('tinypics', 'pics/a.txt') == b'hello'
    monkeypatch.setattr(archives, 'pip_download', None)  # a second call must not need it
    assert archives.fetch(archive, cache) == path


@pytest.mark.parametrize(
    'damage, word',
    [
        (lambda data: data[:0], 'truncated'),
        (lambda data: data[:-1], 'truncated'),
        (lambda data: data[: len(data) // 2], 'truncated'),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], 'damaged'),
        (lambda data: data + b'x', 'damaged'),
    ],
)
def test_damaged_cached_archive_is_named(tmp_path, damage, word):
    path, archive = make_wheel(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError) as error:
        archives.fetch(archive, tmp_path)
    message = str(error.value)
    for part in (str(path), f'is {word}', archive.sha256, found, 'delete it and run this again'):
        assert part in message
    assert '\n' not in message
    assert path.exists()  # it is the user's to delete


def test_download_of_another_file_is_refused_and_not_kept(index, tmp_path):
    _, archive = make_wheel(index, members=[('a', b'served')])
    pinned = replace(archive, sha256='0' * 64)
    with pytest.raises(ArchiveError, match=f'expected SHA-256 {"0" * 64}.*found {archive.sha256}'):
        archives.fetch(pinned, tmp_path / 'cache')
    assert list((tmp_path / 'cache').iterdir()) == []


def test_interrupted_download_never_counts(index, tmp_path, monkeypatch):
    _, archive = make_wheel(index)
    cache = tmp_path / 'cache'

    def interrupted(archive, folder):
        (folder / archive.filename).write_bytes(b'half')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, 'pip_download', interrupted)
        with pytest.raises(KeyboardInterrupt):
            archives.fetch(archive, cache)
    assert list(cache.iterdir()) == []
    assert archives.fetch(archive, cache).read_bytes() == (index / archive.filename).read_bytes()


def test_missing_network_is_one_line(tmp_path, monkeypatch, capfd):
    with socket.socket() as free:  # a port where nothing listens
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for name in ('PIP_FIND_LINKS', 'PIP_EXTRA_INDEX_URL', 'PIP_NO_INDEX'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PIP_CONFIG_FILE', '/dev/null')
    monkeypatch.setenv('PIP_INDEX_URL', f'http://127.0.0.1:{port}/simple')
    monkeypatch.setenv('PIP_NO_CACHE_DIR', '1')
    out = tmp_path / 'data'
    assert prepare.main(['--out', str(out), '--only', 'nuclei']) == 1
    error = capfd.readouterr().err
    assert error.startswith('error: cannot fetch stardist-0.9.2') and error.count('\n') == 1
    assert 'connection' in error.lower() and str(out / '.archives') in error


def test_unknown_package_says_what_pip_said(index, tmp_path):
    index.mkdir()
    _, archive = make_wheel(tmp_path / 'elsewhere')
    with pytest.raises(DownloadError, match=r'cannot fetch tinypics-1\.0.*No matching|Could not'):
        archives.fetch(archive, tmp_path / 'cache')


def test_reader_names_archive_and_member(tmp_path):
    path, _ = make_wheel(tmp_path)
    with pytest.raises(ArchiveError, match=r'tinypics-1\.0.*cannot read .pics/none\.png.'):
        ArchiveReader({'tinypics': path}).read('tinypics', 'pics/none.png')


# ---- masks and tiles -----------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['random', 'full', 'empty', 'corner', 'ring'])
def test_rle_is_the_mask(kind):
    mask_tools = pytest.importorskip('pycocotools.mask')
    mask = np.zeros((13, 7), bool)
    if kind == 'random':
        mask = np.random.default_rng(1).random((13, 7)) > 0.5
    elif kind == 'full':
        mask[:] = True
    elif kind == 'corner':
        mask[0, 0] = True
    elif kind == 'ring':
        mask[2:9, 1:6] = True
        mask[4:7, 3:5] = False
    rle = coco.encode_rle(mask)
    assert sum(rle['counts']) == mask.size
    packed = mask_tools.frPyObjects(rle, *mask.shape)
    np.testing.assert_array_equal(mask_tools.decode(packed), mask)
    assert mask_tools.area(packed) == mask.sum()


def test_annotations_are_clipped_at_the_tile():
    labels = np.zeros((20, 30), np.int64)
    labels[2:8, 6:16] = 3  # 10 wide; the tile sees 4 columns on its right
    labels[0:10, 0:2] = 4  # 10 high; the tile starts at row 2
    labels[9:11, 4:6] = 7  # 4 pixels: 2 in the tile
    found = coco.tile_annotations(labels, Region(0, 2, 10, 10), min_area=3)
    assert [a['instance'] for a in found] == [3, 4]
    assert found[0]['bbox'] == [6, 0, 4, 6] and found[0]['area'] == 24
    assert found[1]['bbox'] == [0, 0, 2, 8] and found[1]['area'] == 16
    assert all(a['segmentation']['size'] == [8, 10] and a['iscrowd'] == 0 for a in found)
    kept = coco.tile_annotations(labels, Region(0, 2, 10, 10), min_area=2)
    assert [a['instance'] for a in kept] == [3, 4, 7]


def test_tile_regions_stay_inside():
    region = Region(10, 20, 50, 60)
    tiles = pictures.tile_regions(region, size=16, stride=10)
    assert [(t.left, t.top) for t in tiles] == [(x, y) for y in (20, 30, 40) for x in (10, 20, 30)]
    with pytest.raises(ValueError, match='`size` 41 does not fit'):
        pictures.tile_regions(region, size=41, stride=10)


def test_tiles_reach_every_border():
    region = Region(10, 20, 95, 120)
    tiles = pictures.overlapping_tiles(region, size=32, stride=20)
    assert {(t.right - t.left, t.bottom - t.top) for t in tiles} == {(32, 32)}
    lefts, tops = sorted({t.left for t in tiles}), sorted({t.top for t in tiles})
    assert (lefts[0], lefts[-1] + 32, tops[0], tops[-1] + 32) == (10, 95, 20, 120)
    assert max(np.diff(lefts)) <= 20 and max(np.diff(tops)) <= 20
    assert len(pictures.overlapping_tiles(Region(0, 0, 32, 32), 32, 20)) == 1

    seen, tiles = np.zeros((130, 100), int), pictures.covering_tiles(region, size=32)
    for tile in tiles:
        tile.crop(seen)[:] += 1
    assert {t.right - t.left for t in tiles} == {28, 29}  # 85 in three
    assert {t.bottom - t.top for t in tiles} == {25}
    assert (region.crop(seen) == 1).all() and seen.sum() == 85 * 100


def test_as_rgb_refuses_what_it_would_spoil():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pictures.as_rgb(grey).shape == (2, 3, 3)
    with pytest.raises(ValueError, match='uint16'):
        pictures.as_rgb(grey.astype(np.uint16))
    with pytest.raises(ValueError, match=r'\(2, 3, 4\)'):
        pictures.as_rgb(np.zeros((2, 3, 4), np.uint8))


def test_reduce_is_the_mean_of_blocks():
    picture = np.zeros((5, 4, 3), np.uint8)
    picture[:2, :2] = [[[0], [10]], [[20], [30]]]
    small = pictures.reduce(picture, 2)
    assert small.shape == (2, 2, 3) and small[0, 0].tolist() == [15, 15, 15]
    np.testing.assert_array_equal(pictures.reduce(picture, 1), picture)


@pytest.mark.parametrize('side, number', [(160, 1), (300, 3), (512, 5), (5000, 6)])
def test_spread_positions_reach_both_borders(side, number):
    positions = photographs.spread_positions(side)
    assert len(positions) == number
    assert positions[0] == 0 and positions[-1] == (side - 160 if number > 1 else 0)


def test_spread_positions_refuse_a_small_picture():
    with pytest.raises(ValueError, match='`side` must be at least 160 pixels, got 159'):
        photographs.spread_positions(159)


# ---- nuclei, on a picture made here --------------------------------------------------------------


def check_nuclei(folder, labels):
    """Everything that must hold of a nuclei data set; returns documents by split."""
    mask_tools = pytest.importorskip('pycocotools.mask')
    documents, regions = {}, {}
    for split in ('train', 'val'):
        document = json.loads((folder / 'annotations' / f'{split}.json').read_text())
        documents[split] = document
        images = {image['id']: image for image in document['images']}
        assert sorted(image['file_name'] for image in images.values()) == sorted(
            path.name for path in (folder / split).iterdir()
        )
        seen = np.zeros(labels.shape, bool)
        for image in images.values():
            tile = Region(*image['region'])
            tile.crop(seen)[:] = True
            with Image.open(folder / split / image['file_name']) as png:
                assert png.mode == 'RGB' and png.size == (image['width'], image['height'])
                assert png.size == (128, 128)
        regions[split] = seen
        ids = [a['id'] for a in document['annotations']]
        assert len(set(ids)) == len(ids) and min(ids) == 1
        by_image = {number: set() for number in images}
        for annotation in document['annotations']:
            image = images[annotation['image_id']]
            packed = mask_tools.frPyObjects(annotation['segmentation'], 128, 128)
            mask = Region(*image['region']).crop(labels) == annotation['instance']
            np.testing.assert_array_equal(mask_tools.decode(packed), mask)
            assert mask_tools.area(packed) == annotation['area'] >= nuclei.MIN_AREA
            assert mask_tools.toBbox(packed).tolist() == annotation['bbox']
            left, top, width, height = annotation['bbox']
            assert 0 <= left < left + width <= 128 and 0 <= top < top + height <= 128
            by_image[image['id']].add(annotation['instance'])
        for number, image in images.items():  # and none is forgotten
            found, areas = np.unique(Region(*image['region']).crop(labels), return_counts=True)
            wanted = {i for i, n in zip(found.tolist(), areas) if i and n >= nuclei.MIN_AREA}
            assert by_image[number] == wanted
    assert not (regions['train'] & regions['val']).any()
    assert (regions['train'] | regions['val']).all()
    return documents


def test_nuclei_tiles_of_a_made_picture(nuclei_wheel, tmp_path):
    path, labels = nuclei_wheel
    counts, _ = nuclei.build(tmp_path, ArchiveReader({nuclei.PACKAGE: path}))
    documents = check_nuclei(tmp_path, labels)
    assert counts['train_images'] == 117 and counts['val_images'] == 4
    ring = [a for a in documents['train']['annotations'] if a['instance'] == 50]
    assert 1200 in {a['area'] for a in ring}  # 40x40 with its hole of 20x20
    parts = [a for a in documents['train']['annotations'] if a['instance'] == 51]
    assert [30, 30] in [a['bbox'][2:] for a in parts]  # one annotation spans both parts


def test_normalisation_ignores_the_held_out_region(nuclei_wheel, tmp_path):
    path, _ = nuclei_wheel
    before = nuclei.read_nuclei(ArchiveReader({nuclei.PACKAGE: path}))
    with zipfile.ZipFile(path) as file:
        (tmp_path / 'again.png').write_bytes(file.read(nuclei.PICTURE))
    picture = np.array(Image.open(tmp_path / 'again.png')).astype(np.uint16)
    picture[:, 384:] *= 100
    bright, _ = make_wheel(
        tmp_path / 'bright',
        nuclei.PACKAGE,
        members=[(nuclei.PICTURE, png_bytes(picture, tmp_path / 'bright.png'))],
    )
    after = nuclei.read_nuclei(ArchiveReader({nuclei.PACKAGE: bright}))
    np.testing.assert_array_equal(before[:, :384], after[:, :384])
    assert (before[:, 384:] != after[:, 384:]).any()


# ---- the script ----------------------------------------------------------------------------------


def run_script(out, wheel):
    cache = wheel.parent
    return prepare.main(['--out', str(out), '--only', 'nuclei', '--cache', str(cache)])


def test_script_is_deterministic_and_mends(nuclei_wheel, tmp_path, capsys):
    wheel, _ = nuclei_wheel
    assert run_script(tmp_path / 'a', wheel) == run_script(tmp_path / 'b', wheel) == 0
    first = files_of(tmp_path / 'a')
    assert first == files_of(tmp_path / 'b')
    assert 'demo/LICENSES.md' in first and 'demo/licenses/stardist.txt' in first
    capsys.readouterr()

    assert run_script(tmp_path / 'a', wheel) == 0
    assert 'nuclei: complete' in capsys.readouterr().out
    tile = tmp_path / 'a/demo/nuclei/train/nuclei_y000_x000.png'
    tile.write_bytes(tile.read_bytes()[:-5])
    (tile.parent / 'stray.png').write_bytes(b'')
    assert run_script(tmp_path / 'a', wheel) == 0
    assert 'complete' not in capsys.readouterr().out
    assert files_of(tmp_path / 'a') == first


def test_failed_build_leaves_nothing(nuclei_wheel, tmp_path, monkeypatch):
    wheel, _ = nuclei_wheel

    def build(folder, reader):
        (folder / 'half').write_text('')
        raise ArchiveError('broke')

    monkeypatch.setitem(prepare.DATA_SETS, 'nuclei', prepare.DataSet(('stardist',), build))
    assert run_script(tmp_path / 'a', wheel) == 1
    assert list((tmp_path / 'a/demo').iterdir()) == []


def test_damaged_archive_is_told_even_if_the_data_are_there(nuclei_wheel, tmp_path, capsys):
    wheel, _ = nuclei_wheel
    assert run_script(tmp_path / 'a', wheel) == 0
    wheel.write_bytes(wheel.read_bytes()[:-10])
    assert run_script(tmp_path / 'a', wheel) == 1
    assert f'error: {wheel} is truncated' in capsys.readouterr().err
    wheel.unlink()  # without it the finished data are still good
    assert run_script(tmp_path / 'a', wheel) == 0


def test_script_refuses_an_unknown_data_set(capsys):
    with pytest.raises(SystemExit):
        prepare.main(['--only', 'cats'])
    assert "invalid choice: 'cats'" in capsys.readouterr().err


def test_set_whose_tool_is_missing_is_left_out(nuclei_wheel, tmp_path, monkeypatch, capsys):
    wheel, _ = nuclei_wheel
    own = prepare.DATA_SETS['nuclei']
    monkeypatch.setattr(
        prepare, 'DATA_SETS', {'nuclei': own, 'other': replace(own, needs='no_such_package')}
    )
    command = ['--out', str(tmp_path / 'a'), '--cache', str(wheel.parent)]
    assert prepare.main(command) == 0
    assert 'other: left out, as no_such_package is not installed' in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / 'a/demo').iterdir() if p.is_dir()) == [
        'licenses',
        'nuclei',
    ]
    assert prepare.main([*command, '--only', 'other']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: other needs no_such_package') and error.count('\n') == 1


# ---- the real pictures ---------------------------------------------------------------------------


def read_member(package, member):
    reader = ArchiveReader(
        {package: ROOT / 'data' / '.archives' / archives.ARCHIVES[package].filename}
    )
    return pictures.read_picture(reader, package, member)


def test_real_nuclei(demo_data):
    labels = read_member(nuclei.PACKAGE, nuclei.LABELS)
    assert len(np.unique(labels)) - 1 == 125
    documents = check_nuclei(demo_data / 'nuclei', labels)
    assert len(documents['train']['images']) == 117 and len(documents['val']['images']) == 4
    assert len(documents['train']['annotations']) == 1091
    assert len(documents['val']['annotations']) == 29


def test_real_nuclei_read_by_pycocotools(demo_data):
    coco_api = pytest.importorskip('pycocotools.coco')
    dataset = coco_api.COCO(str(demo_data / 'nuclei/annotations/val.json'))
    assert dataset.getCatIds(['nucleus']) == [1]
    for annotation in dataset.loadAnns(dataset.getAnnIds()):
        assert dataset.annToMask(annotation).sum() == annotation['area']


def test_real_pool(demo_data):
    folders = sorted(p for p in (demo_data / 'photographs/train').iterdir())
    counts = {folder.name: len(list(folder.glob('*.png'))) for folder in folders}
    assert len(counts) == 23 and sum(counts.values()) == 880 and counts['nuclei'] == 345
    for folder in folders:
        for path in folder.iterdir():
            with Image.open(path) as png:
                assert png.mode == 'RGB' and png.size == (160, 160)


def test_real_pool_has_no_held_out_nucleus(demo_data):
    val_left = nuclei.SPLITS['val'][0].left
    crops = list((demo_data / 'photographs/train/nuclei').iterdir())
    assert crops
    for path in crops:
        left = int(path.stem.rpartition('_x')[2])
        assert left + 160 <= val_left
    # The name tells the truth: the crop and the training tile at its corner are the same pixels.
    crop = np.array(Image.open(demo_data / 'photographs/train/nuclei/nuclei_y0032_x0064.png'))
    tile = np.array(Image.open(demo_data / 'nuclei/train/nuclei_y032_x064.png'))
    np.testing.assert_array_equal(crop[:128, :128], tile)


def test_real_licences_name_every_source(demo_data):
    text = (demo_data / 'LICENSES.md').read_text()
    for name in [name for name, data_set in prepare.DATA_SETS.items() if data_set.possible]:
        manifest = json.loads((demo_data / name / prepare.MANIFEST).read_text())
        assert manifest['sources']
        for source in manifest['sources']:
            assert f'| {name} | {source["package"]} | `{source["member"]}` |' in text
    for archive in archives.ARCHIVES.values():
        assert archive.sha256 in text and archive.licence in text
        assert (demo_data / 'licenses' / f'{archive.package}.txt').stat().st_size > 500
