"""tools/split_dota.py on a small DOTA made here, by mmrotate's own tool; then the submission."""

import os
import re
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import DictAction
from mmengine.runner import Runner
from PIL import Image

from .test_configs import read
from .tiny_configs import ROOT, plain_text, shrink

sys.path.insert(0, str(ROOT / 'tools'))

import split_dota

NAME = 'rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota'
WIDTH, HEIGHT = 200, 150
LABELS = """imagesource:GoogleEarth
gsd:0.146
10 20 50 20 50 40 10 40 plane 0
120 90 190 90 190 120 120 120 ship 1
"""
SMALL = ['--size', '128', '--gap', '28', '--processes', '1']


@pytest.fixture
def raw(tmp_path):
    """Raw DOTA with two, one and one pictures."""
    pytest.importorskip('mmrotate')
    root = tmp_path / 'raw'
    for part, names in dict(train=['P0001', 'P0002'], val=['P0003'], test=['P0004']).items():
        for name in names:
            write_picture(root / part / 'images' / f'{name}.png', seed=int(name[1:]))
            if part != 'test':
                write_labels(root / part / 'labelTxt' / f'{name}.txt')
    return root


def write_picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path: Path, text: str = LABELS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def split(*arguments: object) -> int:
    return split_dota.main([str(argument) for argument in arguments])


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()}


def test_patches_and_their_objects(raw, tmp_path, capfd):
    out = tmp_path / 'out'
    assert split(raw, '--out', out, *SMALL) == 0
    corners = ['0___0', '0___22', '72___0', '72___22']
    names = {'trainval': ('P0001', 'P0002', 'P0003'), 'test': ('P0004',)}
    for part, pictures in names.items():
        expected = {f'{name}__128__{corner}' for name in pictures for corner in corners}
        assert stems(out / part / 'images') == stems(out / part / 'annfiles') == expected

    picture = np.asarray(Image.open(raw / 'val' / 'images' / 'P0003.png'))
    patch = np.asarray(Image.open(out / 'trainval' / 'images' / 'P0003__128__72___22.png'))
    assert np.array_equal(patch, picture[22:150, 72:200])
    labels = out / 'trainval' / 'annfiles'
    assert (labels / 'P0003__128__72___22.txt').read_text() == (
        '48.0 68.0 118.0 68.0 118.0 98.0 48.0 98.0 ship 1\n'
    )
    # Of the plane, 90 % are in this one: it is there, cut off, as difficult.
    assert (labels / 'P0003__128__0___22.txt').read_text() == (
        '10.0 -2.0 50.0 -2.0 50.0 18.0 10.0 18.0 plane 2\n'
    )
    assert all(path.read_text() == '' for path in (out / 'test' / 'annfiles').iterdir())
    said = capfd.readouterr().out
    assert 'trainval: 3 of 3 pictures' in said
    assert 'trainval: 12 patches, 12 with objects' in said
    assert 'test: 4 patches, 0 with objects' in said


def test_validation_may_stay_apart(raw, tmp_path):
    out = tmp_path / 'out'
    assert split(raw, '--out', out, '--parts', 'train', 'val', *SMALL[:-1], 2) == 0
    assert {path.name for path in out.iterdir()} == {'train', 'val'}
    assert {name[:5] for name in stems(out / 'train' / 'images')} == {'P0001', 'P0002'}
    assert {name[:5] for name in stems(out / 'val' / 'images')} == {'P0003'}


def test_defaults_are_those_of_the_configs(raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split(raw, '--parts', 'val') == 0
    folder = tmp_path / 'data' / 'split_ss_dota' / 'val' / 'images'
    assert stems(folder) == {'P0003__1024__0___0'}
    patch = Image.open(folder / 'P0003__1024__0___0.png')
    assert patch.size == (1024, 1024)
    assert patch.getpixel((WIDTH, 0)) == patch.getpixel((0, HEIGHT)) == (124, 116, 104)


@pytest.mark.parametrize('scales', ['single', 'multi'])
def test_overlap_and_scales(scales, raw, tmp_path, monkeypatch):
    """The starts of patches along a side of 2000 pixels: the overlap, and the last at the end."""
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (2000, 100)).save(raw / 'val' / 'images' / 'P0003.png')
    Image.new('RGB', (100, 2000)).save(raw / 'val' / 'images' / 'P0009.png')
    write_labels(raw / 'val' / 'labelTxt' / 'P0009.txt', '')
    single = scales == 'single'
    assert split(raw, '--parts', 'val', *([] if single else ['--multi-scale'])) == 0
    folder = tmp_path / 'data' / ('split_ss_dota' if single else 'split_ms_dota') / 'val'
    # Patches that lie mostly beside the picture are left out while others are there.
    starts = {1024: [0, 824, 976]} if single else {682: [0, 349, 698, 1047, 1318]}
    expected = {f'P0003__{size}__{x}___0' for size in starts for x in starts[size]}
    expected |= {f'P0009__{size}__0___{y}' for size in starts for y in starts[size]}
    assert stems(folder / 'images') == expected


def rename(old: str, new: str):
    return lambda raw: (raw / old).rename(raw / new)


def labels(text: str):
    return lambda raw: write_labels(raw / 'train/labelTxt/P0002.txt', text)


BAD = {
    'no-folder': (rename('val', 'valid'), r'the folder .*val/images does not exist'),
    'no-test': (rename('test', 'x'), r'the folder .*test/images does not exist'),
    'no-labels': (rename('train/labelTxt', 'x'), r'the folder .*train/labelTxt does not exist'),
    'no-pictures': (rename('val/images/P0003.png', 'x'), r'no pictures in .*val/images; expected'),
    'no-label': (
        rename('train/labelTxt/P0002.txt', 'x'),
        r'P0002\.png has no labels; .*P0002\.txt has to exist, empty if',
    ),
    'twice': (
        lambda raw: write_picture(raw / 'val/images/P0002.png'),
        r'train/images/P0002\.png and .*val/images/P0002\.png have the same name',
    ),
    'twice-in-a-folder': (
        lambda raw: write_picture(raw / 'train/images/P0002.jpg'),
        r'P0002\.jpg and .*P0002\.png have the same name',
    ),
    'underscores': (
        rename('test/images/P0004.png', 'test/images/P__4.png'),
        r'the name of .*P__4\.png holds `__`',
    ),
    'suffix': (
        lambda raw: write_picture(raw / 'train/images/P0007.PNG'),
        r'P0007\.PNG would be left out; rename or remove it',
    ),
    'no-difficulty': (labels('1 2 3 4 5 6 7 8 ship\n'), r"P0002\.txt:1 is '1 2 .* ship'; expected"),
    'two-spaces': (labels('gsd:1\n1 2 3 4 5 6 7  8 ship 0\n'), r'P0002\.txt:2 is .*single spaces'),
    'trailing-space': (labels('1 2 3 4 5 6 7 8 ship 1 \n'), r'P0002\.txt:1 is .*single spaces'),
    'no-number': (labels('1 2 3 4 5 6 7 x ship 0\n'), r'P0002\.txt:1 is .*expected x1 y1'),
    'no-picture': (
        lambda raw: (raw / 'train/images/P0002.png').write_text('no picture'),
        r'P0002\.png is damaged: cannot identify image file .*; replace it',
    ),
    'truncated': (
        lambda raw: truncate(raw / 'val/images/P0003.png'),
        r'P0003\.png is damaged: image file is truncated.*; replace it',
    ),
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize('case', BAD)
def test_what_would_be_lost_is_named(case, raw, tmp_path, capfd):
    change, message = BAD[case]
    change(raw)
    out = tmp_path / 'out'
    assert split(raw, '--out', out, *SMALL) == 1
    error = capfd.readouterr().err
    assert re.match(rf'error: .*{message}', error), error
    assert error.count('\n') == 1
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--gap', '128'], 'the gap is 128, but has to be at least 0 and less than the size, 128'),
        (['--gap', '-1'], 'the gap is -1, but'),
        (['--processes', '0'], '--processes is 0, but has to be at least 1'),
    ],
)
def test_bad_arguments(arguments, message, raw, tmp_path, capsys):
    assert split(raw, '--out', tmp_path / 'out', *SMALL, *arguments) == 1
    assert capsys.readouterr().err.startswith(f'error: {message}')


def test_without_mmrotate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(split_dota, 'is_installed', lambda name: False)
    assert split(tmp_path, '--out', tmp_path / 'out') == 1
    assert capsys.readouterr().err == 'error: mmrotate is not installed; install `onedl-mmrotate`\n'


def test_what_is_there_is_replaced_only_on_demand(raw, tmp_path, capsys):
    command = [raw, '--out', tmp_path / 'out', '--parts', 'val', *SMALL]
    assert split(*command) == 0
    old = stems(tmp_path / 'out' / 'val' / 'images')
    assert split(*command) == 1
    assert re.match('error: .*/val is not empty; --fresh', capsys.readouterr().err)

    truncate(raw / 'val' / 'images' / 'P0003.png')
    assert split(*command, '--fresh') == 1
    assert stems(tmp_path / 'out' / 'val' / 'images') == old  # a failure takes nothing away

    (raw / 'val' / 'images' / 'P0003.png').unlink()
    write_picture(raw / 'val' / 'images' / 'P0005.png')
    write_labels(raw / 'val' / 'labelTxt' / 'P0005.txt')
    assert split(*command, '--fresh') == 0
    assert {name[:5] for name in stems(tmp_path / 'out' / 'val' / 'images')} == {'P0005'}


def test_processes_end_with_it():
    """An interrupt closes the generator; the tool and its pool of processes are then gone."""
    child = 'import subprocess; subprocess.run(["sleep", "60"])'
    program = (
        'import subprocess, sys\n'
        f'child = subprocess.Popen([sys.executable, "-c", {child!r}])\n'
        'print(child.pid, flush=True)\n'
        'child.wait()\n'
    )
    lines = split_dota.follow([sys.executable, '-c', program], 'part')
    group = os.getpgid(int(next(lines)))
    assert group != os.getpgid(0) and len(living(group)) >= 2
    lines.close()
    end = time.monotonic() + 10
    while living(group) and time.monotonic() < end:
        time.sleep(0.05)
    assert living(group) == []


def living(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, of = stat.read_text().rpartition(')')[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state != 'Z':
            found.append(int(stat.parent.name))
    return found


def submission_options(outfile_prefix: Path) -> list[str]:
    """The options that configs/rotated_detection/README.md tells to give."""
    text = (ROOT / 'configs' / 'rotated_detection' / 'README.md').read_text()
    [block] = re.findall(r'^```bash\n(python tools/test\.py .*?)```', text, re.M | re.S)
    words = shlex.split(block.replace('\\\n', ' '))
    assert words[:5] == ['python', 'tools/test.py', 'CONFIG', 'CHECKPOINT', '--cfg-options']
    given = 'test_evaluator.outfile_prefix=work_dirs/dota/Task1'
    assert given in words
    return [
        w if w != given else f'test_evaluator.outfile_prefix={outfile_prefix}' for w in words[5:]
    ]


@pytest.fixture
def tiny(raw, tmp_path):
    """A shrunken config on patches of the real tool."""
    out = tmp_path / 'out'
    assert split(raw, '--out', out, *SMALL) == 0
    cfg = shrink(read(NAME), NAME, tmp_path)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = f'{out}/'
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    return cfg


def check_submission(folder: Path) -> None:
    """A file for each class, with objects of the whole test picture, and all of them zipped."""
    files = sorted(folder.glob('Task1_*.txt'))
    assert len(files) == 15
    with zipfile.ZipFile(folder / f'{folder.name}.zip') as archive:
        assert sorted(archive.namelist()) == [path.name for path in files]
    objects = [line.split() for path in files for line in path.read_text().splitlines()]
    assert objects
    assert {fields[0] for fields in objects} == {'P0004'}
    corners = np.array([fields[2:] for fields in objects], dtype=float)
    assert corners.shape[1] == 8
    # Patches have 128 pixels: these were moved to where they are in the picture.
    assert corners.reshape(-1, 4, 2).mean(axis=1)[:, 0].max() > 128


def test_submission(tiny, tmp_path):
    """The options of the README, and the stock evaluator: patches merged, files, zip."""
    options = DictAction(option_strings=['--cfg-options'], dest='cfg_options', nargs='+')
    namespace = type('Namespace', (), {})()
    options(None, namespace, submission_options(tmp_path / 'Task1'))
    tiny.merge_from_dict(namespace.cfg_options)
    with plain_text():
        Runner.from_cfg(tiny).test()
    check_submission(tmp_path / 'Task1')


@pytest.mark.slow
def test_commands_of_the_stock_scripts(tiny, tmp_path):
    """Training with a validation by the real pool of processes, then the submission."""
    path = tmp_path / 'tiny.py'
    tiny.log_level = 'INFO'
    tiny.dump(path)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}

    def run(script: str, *arguments: object) -> str:
        command = [sys.executable, ROOT / 'tools' / script, path, *arguments]
        done = subprocess.run(
            [str(word) for word in command], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    assert re.search(r'dota/mAP: \d', run('train.py'))
    checkpoint = tmp_path / 'epoch_1.pth'
    said = run('test.py', checkpoint, '--cfg-options', *submission_options(tmp_path / 'Task1'))
    assert f'The submission file save at {tmp_path / "Task1"}' in said
    check_submission(tmp_path / 'Task1')
