"""SkipBadSamplesHook: what is skipped, what takes its place, and what is said of it."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ENGINE_MODELS
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from itpn_mm.engine import SkipBadSamplesHook
from itpn_mm.engine.bad_samples import (
    BadSample,
    SkippingDataset,
    describe_error,
    find_truncation,
    read_records,
    write_record,
)

from ..tiny_configs import draw_picture

pytestmark = pytest.mark.checklist('bad-data')
BAD = {1: 'zero.jpg', 2: 'half.jpg', 4: 'text.png', 7: 'cut.png'}
COUNT = 9


@pytest.fixture(autouse=True)
def nothing_at_exit(monkeypatch) -> None:
    """A training that ends with an error here is no reason to say so when the tests end."""
    nothing = SimpleNamespace(register=lambda _: None, unregister=lambda _: None)
    monkeypatch.setattr('itpn_mm.engine.bad_samples_hook.atexit', nothing)
    # Asking for compilers and the like takes longer than such a training.
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


class Recorder(BaseModel):
    """A model that notes which pictures it has seen, and what was made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[str, int]] = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if isinstance(inputs, (list, tuple)):
            inputs = torch.stack(list(inputs))
        for image, sample in zip(inputs, data_samples, strict=True):
            self.seen.append((Path(sample.img_path).name, int(image.sum())))
        return dict(loss=self.scale * inputs.float().mean())


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Nine pictures, of which four cannot be read."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for i in range(COUNT):
        suffix = '.jpg' if i % 2 == 0 else '.png'
        draw_picture(48, 40, seed=i).save(folder / f'{i}{suffix}')
    names = sorted(path.name for path in folder.iterdir())
    for index, name in BAD.items():
        path = folder / names[index]
        picture = draw_picture(48, 40, seed=index)
        if name == 'half.jpg':
            picture.save(path, 'JPEG')
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif name == 'cut.png':
            picture.save(path, 'PNG')
            path.write_bytes(path.read_bytes()[:-200])
        else:
            path.write_bytes(b'' if name == 'zero.jpg' else b'<html>Sign in</html>')
    return folder


def make_runner(
    folder: Path, work_dir: Path, hooks: list[dict], workers: int = 0, iters: int = 12
) -> Runner:
    pytest.importorskip('mmpretrain')
    ENGINE_MODELS.register_module(name='BadSamplesRecorder', module=Recorder, force=True)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomCrop', crop_size=24),
        dict(type='PackInputs'),
    ]
    return Runner(
        model=dict(type='mmengine.BadSamplesRecorder'),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=3,
            num_workers=workers,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='CustomDataset', data_prefix=str(folder), with_label=False, pipeline=pipeline
            ),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        custom_hooks=hooks,
        default_hooks=dict(checkpoint=None, logger=None),
        default_scope='mmpretrain',
        randomness=dict(seed=0),
        experiment_name=f'bad_samples_{work_dir}',
        log_level='WARNING',
    )


SEED = dict(type='itpn_mm.SeedHook')
SKIP = dict(type='itpn_mm.SkipBadSamplesHook')


def test_same_run_for_any_workers_and_order_of_hooks(pictures, tmp_path, capfd, record_figure):
    seen = []
    runs = ((0, [SEED, SKIP]), (2, [SKIP, SEED]))
    for i, (workers, hooks) in enumerate(runs):
        runner = make_runner(pictures, tmp_path / str(i), hooks, workers)
        runner.train()
        seen.append(runner.model.seen)
        records = read_records(Path(runner.log_dir) / 'bad_samples')
        assert [bad.index for bad in records] == list(BAD)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 36
    names = sorted(path.name for path in pictures.iterdir())
    assert not {names[index] for index in BAD} & {name for name, _ in seen[0]}
    text = capfd.readouterr().out
    assert 'training finished: 4 samples cannot be used and were skipped' in text
    for reason in ('is empty', 'a JPEG without its end', 'a PNG without its end', 'AssertionError'):
        assert reason in text
    record_figure('bad pictures of 9 that are named', len(BAD), '4')


def test_what_stands_in_depends_on_the_index_alone(pictures, tmp_path):
    runner = make_runner(pictures, tmp_path / 'run', [])
    dataset = SkippingDataset(runner.train_dataloader.dataset, str(tmp_path / 'bad'), 0, 5)
    taken = [Path(dataset[i]['data_samples'].img_path).name for i in range(COUNT)]
    names = sorted(path.name for path in pictures.iterdir())
    stand_in = [0, 3, 3, 3, 5, 5, 6, 8, 8]
    assert taken == [names[i] for i in stand_in]
    again = pickle.loads(pickle.dumps(dataset))  # as for a worker that is spawned
    assert Path(again[7]['data_samples'].img_path).name == names[8]
    assert dataset.metainfo == runner.train_dataloader.dataset.metainfo


def test_without_seeding(pictures, tmp_path, monkeypatch):
    """The data are gone through more than once; nothing is written but in the folder of the run."""
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    runner = make_runner(pictures, tmp_path / 'run', [SKIP], workers=2, iters=7)
    runner.train()
    assert len(runner.model.seen) == 21
    assert sorted(path.name for path in tmp_path.iterdir()) == ['here', 'pictures', 'run']
    assert not list((tmp_path / 'here').iterdir()) and len(list(pictures.iterdir())) == COUNT


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_too_many(pictures, tmp_path, workers):
    hooks = [SEED, dict(SKIP, max_skipped=3)]
    runner = make_runner(pictures, tmp_path / 'run', hooks, workers)
    with pytest.raises(ValueError, match='more than `max_skipped` = 3 of SkipBadSamplesHook: /'):
        runner.train()
    runner = make_runner(pictures, tmp_path / 'enough', [SEED, dict(SKIP, max_skipped=4)], workers)
    runner.train()


@pytest.mark.parametrize('kind', ['zero', 'gone'])
def test_the_first_one_stops(pictures, tmp_path, kind):
    """With its name, whatever the pipeline said of it."""
    for path in pictures.iterdir():
        path.unlink()
    path = pictures / 'picture.png'
    path.write_bytes(b'')
    runner = make_runner(pictures, tmp_path / 'run', [SEED, dict(SKIP, max_skipped=0)], iters=1)
    assert runner.train_loop  # the list of pictures is made
    if kind == 'gone':
        path.unlink()
    reason = 'is empty' if kind == 'zero' else 'FileNotFoundError'
    with pytest.raises(ValueError, match=f'`max_skipped` = 0 .*: {path}: .*{reason}'):
        runner.train()


def test_all_are_bad(pictures, tmp_path):
    for path in pictures.iterdir():
        path.write_bytes(b'')
    runner = make_runner(pictures, tmp_path / 'run', [SKIP])
    with pytest.raises(ValueError, match='samples of the training data cannot be used'):
        runner.train()


INTERRUPTED = """
import sys
from pathlib import Path
from tests.test_engine import test_bad_samples as test
from mmengine.hooks import Hook

class Stop(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter == 8:
            raise KeyboardInterrupt

runner = test.make_runner(Path(sys.argv[1]), Path(sys.argv[2]), [test.SEED, test.SKIP])
runner.register_hook(Stop())
runner.train()
"""


@pytest.mark.slow
def test_summary_when_interrupted(pictures, tmp_path, root):
    command = [sys.executable, '-c', INTERRUPTED, str(pictures), str(tmp_path / 'run')]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode
    text = run.stdout + run.stderr
    assert 'training interrupted: 4 samples cannot be used and were skipped' in text


def test_max_skipped_is_checked():
    for value in (-1, '3', 1.5, None):
        with pytest.raises(ValueError, match=re.escape(f'0 or more, but got {value!r}')):
            SkipBadSamplesHook(max_skipped=value)


def test_records_of_several_processes(tmp_path):
    write_record(str(tmp_path), 1, BadSample(5, 'b.jpg', 'is empty'))
    write_record(str(tmp_path), 0, BadSample(2, 'a.jpg', 'is empty'))
    write_record(str(tmp_path), 0, BadSample(5, 'b.jpg', 'is empty'))
    with (tmp_path / 'rank0.jsonl').open('a') as file:
        file.write(json.dumps([7, 'c.jpg'])[:5])  # being written just now
    assert [str(bad) for bad in read_records(str(tmp_path))] == [
        'a.jpg: is empty',
        'b.jpg: is empty',
    ]


def test_truncation(tmp_path):
    """Whole files pass: with a thumbnail, bytes after the end, progressive, of any mode."""
    thumbnail = tmp_path / 'thumbnail.jpg'
    draw_picture(16, 16, seed=1).save(thumbnail)
    picture = draw_picture(64, 48, seed=0)
    exif = Image.Exif()
    exif[0x9286] = thumbnail.read_bytes()
    whole = {
        'plain.jpg': dict(),
        'progressive.jpg': dict(progressive=True),
        'exif.jpg': dict(exif=exif),
        'plain.png': dict(),
    }
    for name, options in whole.items():
        path = tmp_path / name
        picture.save(path, **options)
        data = path.read_bytes()
        assert find_truncation(str(path)) is None, name
        path.write_bytes(data + b'\0' * 10_000)
        assert (find_truncation(str(path)) is None) == name.endswith('.jpg'), name
        for share in (0.9, 0.99):
            path.write_bytes(data[: int(len(data) * share)])
            assert 'is truncated' in find_truncation(str(path)), (name, share)
    assert find_truncation(str(tmp_path / 'none.jpg')) is None
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / 'noise.bmp')
    assert find_truncation(str(tmp_path / 'noise.bmp')) is None


def test_errors_in_one_line():
    assert describe_error(OSError('a\nb')) == 'OSError: a'
    assert describe_error(AssertionError()) == 'AssertionError'
