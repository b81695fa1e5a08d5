"""What tools/predict.py reads, whole and broken, and what it says of it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .tiny_configs import ROOT, draw_picture

pytest.importorskip('mmdet')
sys.path.insert(0, str(ROOT / 'tools'))

import predict
from prediction import pictures as inputs
from prediction.predictor import Predictor, drawable

from .tiny_predictors import NUCLEI, Trained, detector, draw_photographs, read


@pytest.fixture(scope='module')
def masks(tmp_path_factory) -> Trained:
    return detector(NUCLEI, tmp_path_factory.mktemp('masks'), ('cell', 'dust'))


@pytest.fixture
def photographs(tmp_path) -> Path:
    return draw_photographs(tmp_path / 'photographs')


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
