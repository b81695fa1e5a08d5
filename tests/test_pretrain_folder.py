"""tools/pretrain_folder.py: from a folder of pictures to a detector that starts from it."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import pretrain_folder  # noqa: E402
from pretrain_run import models, pictures, plan, recipe, trial  # noqa: E402

from .test_pretraining.clip_files import save_openai  # noqa: E402
from .tiny_configs import draw_picture, plain_text, slow_unless  # noqa: E402

SUFFIXES = ('jpg', 'JPEG', 'png', 'webp', 'bmp', 'tif')
SMALL = ['--model', 'hivit-demo', '--image-size', '64', '--batch-size', '4', '--epochs', '2']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve pictures of several sizes and formats in three folders, and what is to be left out."""
    root = tmp_path_factory.mktemp('pictures')
    for i in range(12):
        path = root / ('', 'a', 'a/b c')[i % 3] / f'ä {i}.{SUFFIXES[i % 6]}'
        path.parent.mkdir(exist_ok=True)
        draw_picture(40 + 9 * i, 100 - 5 * i, seed=i).save(path)
    whole = (root / 'a' / 'ä 1.JPEG').read_bytes()
    (root / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (root / 'a' / 'text.png').write_text('no picture')
    (root / 'notes.txt').write_text('nothing')
    (root / '._ä 0.jpg').write_text('what macOS leaves on other disks')
    (root / '.thumbnails').mkdir()
    draw_picture(32, 32, seed=0).save(root / '.thumbnails' / 'x.png')
    return root


# ---------------------------------------------------------------------------------------- pictures


def test_pictures_are_found_in_all_folders(folder):
    found = pictures.find_pictures(folder)
    assert len(found) == 14 and found == sorted(found)
    assert {'a/b c/ä 2.png', 'ä 0.jpg', 'a/ä 1.JPEG', 'a/text.png'} <= set(found)


def test_broken_pictures_are_named(folder, tmp_path):
    names = [*pictures.find_pictures(folder), 'two\nlines.png', ' ahead.png']
    good, bad = pictures.sort_out(folder, names, tmp_path / 'list.txt', 2)
    assert len(good) == 12 and good == [n for n in names if Path(n).name.startswith('ä')]
    told = ('lines.png', ' ahead.png', 'text.png', 'cut.jpg')
    assert len(bad) == 4 and all(any(name in line for line in bad) for name in told)


@given(st.integers(1, 300))
def test_some_are_held_out(number):
    names = [f'{i:03}.jpg' for i in range(number)]
    trained, held_out = pictures.hold_out(names)
    assert sorted(trained + held_out) == names
    assert len(held_out) == min(8, number // 10)


# -------------------------------------------------------------------------------------------- plan


@given(st.integers(1, 5000), st.sampled_from(['cpu', 'cuda']), st.integers(1, 1000))
def test_every_number_of_pictures_has_a_plan(number, device, epochs):
    base = Config(
        dict(
            auto_scale_lr=dict(base_batch_size=4096),
            optim_wrapper=dict(optimizer=dict(lr=2.4e-3)),
            param_scheduler=[dict(end=40)],
            train_cfg=dict(max_epochs=300),
        )
    )
    made = plan.make_plan(base, number, device, None, epochs)
    assert 1 <= made.batch_size <= min(number, dict(cpu=32, cuda=64)[device])
    assert made.batch_size & (made.batch_size - 1) == 0
    assert made.steps >= plan.MIN_STEPS
    assert made.repeats == 1 or (made.repeats - 1) * number < plan.MIN_STEPS * made.batch_size
    assert 0 <= made.warmup < epochs and (made.warmup > 0 or epochs == 1)
    assert made.lr == pytest.approx(2.4e-3 * math.sqrt(made.batch_size / 4096), rel=1e-2)


@pytest.mark.parametrize('hours, epochs', [(1, 36), (0.001, 1), (10.05, 361)])
def test_hours_are_epochs(hours, epochs):
    made = plan.Plan(100, 10, 1, 1e-3, 300, 0.1)  # ten steps of ten seconds
    assert plan.epochs_within(hours, made, 10.0) == epochs


# ------------------------------------------------------------------------------------- the config


def config(folder, path, name, teacher=None, epochs=30, image_size=224, device='cpu', init=None):
    base = models.base_config(name, teacher)
    path.write_text(
        recipe.write_config(
            base,
            plan.make_plan(Config.fromfile(base), 12, device, 4, epochs),
            model=name,
            image_size=image_size,
            device=device,
            workers=0,
            data_set=pictures.data_set(folder, path.with_suffix('.txt')),
            teacher=teacher,
            init=init,
            options=dict(model=name),
        )
    )
    pictures.write_names(path.with_suffix('.txt'), pictures.find_pictures(folder)[:4])
    return Config.fromfile(path)


def has_parameters(cfg: Config) -> int:
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        return sum(p.numel() for p in MODELS.build(cfg.model).parameters())


@pytest.mark.parametrize('name', slow_unless(models.MODELS, 'demo|tiny'))
def test_every_model_has_a_config(name, folder, tmp_path):
    cfg = config(folder, tmp_path / 'pretrain.py', name, image_size=128)
    assert cfg.model.backbone.img_size == cfg.model.decoder.img_size == 128
    assert cfg.train_dataloader.dataset.dataset.pipeline[1].scale == 128
    assert cfg.optim_wrapper.type == 'OptimWrapper' and 'loss_scale' not in cfg.optim_wrapper
    assert {hook.type for hook in cfg.custom_hooks} == {
        'itpn_mm.EMATeacherHook',
        'itpn_mm.SkipBadSamplesHook',
    }
    assert [s.end for s in cfg.param_scheduler] == [4, 30]
    family, size = name.split('-')
    assert cfg.model.backbone.type.lower() == f'itpn_mm.{family}'
    if size in ('tiny', 'demo'):  # the others take seconds
        assert has_parameters(cfg) > 1e6
    if name == 'fastitpn-tiny':
        cfg = config(folder, tmp_path / 'pretrain.py', name, device='cuda')
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


@pytest.mark.parametrize('name, patch, side', [('hivit-tiny', 14, 56), ('fastitpn-tiny', 16, 64)])
def test_a_teacher_sees_as_many_patches(name, patch, side, folder, tmp_path):
    save_openai(tmp_path / 'clip.pt', patch=patch, grid=14, depth=1, out=24)
    teacher = models.read_teacher(tmp_path / 'clip.pt')
    cfg = config(folder, tmp_path / 'pretrain.py', name, teacher, image_size=64)
    assert cfg.model.teacher.img_size == side
    assert cfg.train_dataloader.dataset.dataset.pipeline[3].second_size == side
    if patch == 14:
        measured = trial.measure(str(tmp_path / 'pretrain.py'))
        assert measured.seconds > 0 and 0.1 < measured.gigabytes < 20


def test_options_are_read_back(folder, tmp_path):
    path = tmp_path / 'pretrain.py'
    config(folder, path, 'hivit-demo')
    assert recipe.read_options(path) == dict(model='hivit-demo')
    path.write_text('a = 1\n')
    with pytest.raises(ValueError, match='was not written by this tool'):
        pretrain_folder.check_same(path, {})


# ----------------------------------------------------------------------------------- the whole


@pytest.fixture
def here(monkeypatch):
    """Steps in this process, for they take ten seconds each in one of their own."""

    def train(self, name, command, outputs, inputs=()):
        if all(path.exists() for path in outputs):
            return
        cfg = Config.fromfile(command[2])
        cfg.update(work_dir=command[4], experiment_name=command[4].replace('/', '_'), resume=True)
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        with plain_text():
            Runner.from_cfg(cfg).train()

    monkeypatch.setattr(pretrain_folder.Steps, 'run', train)
    monkeypatch.setattr(pretrain_folder, 'try_out', trial.measure)


def test_from_a_folder_to_a_detector(folder, tmp_path, here, capsys):
    work = tmp_path / 'work'
    command = [str(folder), *SMALL, '--jobs', '1', '--work-dir', str(work)]
    assert pretrain_folder.main(command) == 0
    said = capsys.readouterr().out
    assert '14 pictures' in said and 'left out: 2' in said and 'cut.jpg' in said
    assert 'few pictures: 8 random crops' in said and '22 steps of 4 crops' in said
    assert len(pictures.read_names(work / 'pictures.txt')) == 11
    assert (work / 'reconstructions.png').stat().st_size > 10_000

    checkpoint = torch.load(work / 'run' / 'epoch_2.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == 44
    pytest.importorskip('mmdet')
    lines = said[said.index('    from itpn_mm.recipes') :].splitlines()[:2]
    text = "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
    (tmp_path / 'detector.py').write_text(text + ''.join(f'{line.strip()}\n' for line in lines))
    cfg = Config.fromfile(tmp_path / 'detector.py')
    init_default_scope('mmdet')
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    state = detector.state_dict()
    loaded = [k for k in state if k.startswith(('backbone.', 'neck.'))]
    assert {k.split('.')[0] for k in loaded} == {'backbone', 'neck'}
    assert all(torch.equal(state[k], checkpoint['state_dict'][k]) for k in loaded)

    # again: it is complete; otherwise: not into the same folder
    assert pretrain_folder.main(command) == 0
    assert 'goes on with' in capsys.readouterr().out
    assert pretrain_folder.main([*command, '--epochs', '3']) == 1
    assert '--epochs 2, now 3: take another --work-dir' in capsys.readouterr().err

    # another one starts from its file
    start = ['--init', str(work / 'run' / 'epoch_2.pth'), '--no-train', '--jobs', '1']
    other = [str(folder), *SMALL, *start, '--work-dir', str(tmp_path / 'other')]
    assert pretrain_folder.main(other) == 0
    assert 'tools/train.py' in capsys.readouterr().out
    assert Config.fromfile(tmp_path / 'other' / 'pretrain.py').load_from == start[1]
    assert not (tmp_path / 'other' / 'run').exists()
    wrong = [*other[:-1], str(tmp_path / 'wrong'), '--model', 'hivit-tiny']
    assert pretrain_folder.main(wrong) == 1
    assert 'embed_dims' in capsys.readouterr().err
    assert not (tmp_path / 'wrong' / 'pretrain.py').exists()  # nothing to go on with


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['{empty}'], 'FOLDER must hold pictures (.jpg'),
        (['{empty}/no'], 'FOLDER must be a folder'),
        (['{broken}'], 'none of'),
        (['{folder}', '--batch-size', '64'], 'must be at most the number of pictures to train on'),
        (['{folder}', '--model', 'resnet-50'], '--model must be one of hivit-demo, hivit-tiny,'),
        (['{folder}', '--teacher', '{empty}/clip.pt'], 'does not exist'),
        (['{folder}', '--teacher', '{clip}', '--model', 'hivit-demo'], '--teacher needs a --model'),
        (['{folder}', '--init', '{empty}/x.pth'], '--init must be a checkpoint'),
    ],
)
def test_errors_come_before_anything_is_built(arguments, told, folder, tmp_path, here, capsys):
    places = dict(folder=folder, empty=tmp_path / 'empty', broken=tmp_path / 'broken')
    for name in ('empty', 'broken'):
        places[name].mkdir()
    (places['broken'] / 'a.jpg').write_text('no picture')
    if '{clip}' in arguments:
        places['clip'] = tmp_path / 'clip.pt'
        save_openai(places['clip'], depth=1)
    arguments = [word.format(**places) for word in arguments]
    work = tmp_path / 'work'
    assert pretrain_folder.main([*arguments, '--jobs', '1', '--work-dir', str(work)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('pretrain_folder.py: error: ') and told in error
    assert not (work / 'pretrain.py').exists()


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['--image-size', '100'], '--image-size must be a multiple of 16'),
        (['--image-size', '48'], 'of at least 64'),
        (['--epochs', '0'], '--epochs must be above 0'),
        (['--hours', '-1'], '--hours must be above 0'),
        (['--hours', '1', '--epochs', '3'], 'not allowed with'),
    ],
)
def test_options_out_of_range(arguments, told, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain_folder.main([str(folder), *arguments])
    assert stop.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_killed_and_run_again(folder, tmp_path):
    """As it is typed; the second run goes on from the checkpoint of the first."""
    tool, work = ROOT / 'tools' / 'pretrain_folder.py', tmp_path / 'work'
    command = [sys.executable, str(tool), folder.name, *SMALL[:-1], '12']
    command += ['--work-dir', str(work)]
    first = subprocess.Popen(command, cwd=folder.parent, start_new_session=True)
    end = time.time() + 300
    while not list((work / 'run').glob('epoch_*.pth')):
        assert first.poll() is None and time.time() < end
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert 'goes on with' in second.stdout and 'resumed epoch' in second.stdout
    assert (work / 'run' / 'epoch_12.pth').is_file()
    assert (work / 'reconstructions.png').is_file()
    assert "swap_in(_base_.model, 'hivit-tiny'" in second.stdout
