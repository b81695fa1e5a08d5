"""tools/train.py and test.py: they check the config and hand it all to the stock script."""

import json
import os
import subprocess
import sys

import pytest
from mmengine.config import Config
from PIL import Image

from itpn_mm import launch
from itpn_mm.hosts import is_installed

# A classifier small enough to train in seconds; {root} holds train/{a,b}/*.png.
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='itpn_mm.HiViT', arch=dict(embed_dims=32, depths=(1, 1, 1), num_heads=2),
        img_size=32, out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=32,
              loss=dict(type='CrossEntropyLoss')),
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, num_classes=2))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root='{root}', data_prefix='train', pipeline=pipeline))
test_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root='{root}', data_prefix='train', pipeline=pipeline))
test_evaluator = dict(type='Accuracy', topk=(1,))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


@pytest.fixture
def config(tmp_path):
    """A config of mmpretrain on eight tiny images."""
    for i in range(8):
        path = tmp_path / 'data' / 'train' / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (32, 32), (30 * i, 255 * (i % 2), 9)).save(path)
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG.replace('{root}', str(tmp_path / 'data')))
    return path


def run(*command, **env) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': '', **env}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=env)


def read_scalars(work_dir) -> list[dict]:
    [path] = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_config_is_found_among_the_arguments(config):
    argv = ['--work-dir', 'x', str(config), '--amp', '--cfg-options', 'train_cfg.max_epochs=7']
    cfg = launch.read_config([*argv, 'load_from=y.py'])
    assert cfg.default_scope == 'mmpretrain'
    assert cfg.train_cfg.max_epochs == 7
    assert cfg.load_from == 'y.py'


def test_stock_script_of_each_package():
    for scope in launch.SCOPES:
        if is_installed(scope):
            path = launch.find_stock_script(scope, 'train.py')
            assert path.is_file() and scope in path.parts


def test_stock_script_of_a_clone(monkeypatch, tmp_path):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmdet', raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'without `tools/train.py`'):
        launch.find_stock_script('mmdet', 'train.py')
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'train.py').touch()
    assert launch.find_stock_script('mmdet', 'train.py') == tmp_path / 'tools' / 'train.py'


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--amp'], r"train.py: expected a config, a file ending in .*'.py'.*--amp"),
        (['no/such.py'], r"train.py: the config 'no/such.py' does not exist"),
        (['{config}', '--cfg-options', 'default_scope=mmfoo'], r'`default_scope` must be .*mmfoo'),
        (
            ['{config}', '--cfg-options', 'train_dataloader.dataset.data_root=/no/where'],
            r"`train_dataloader.dataset.data_root` is '/no/where'",
        ),
    ],
)
def test_bad_input_is_one_line(config, argv, message):
    with pytest.raises(SystemExit, match=message) as caught:
        launch.hand_over('train.py', 'train', [a.replace('{config}', str(config)) for a in argv])
    assert '\n' not in str(caught.value)


def test_missing_package_is_named(config, monkeypatch):
    monkeypatch.setattr(launch, 'is_installed', lambda name: False)
    with pytest.raises(SystemExit, match=r'mmpretrain, which is not installed.*onedl-mmpretrain'):
        launch.hand_over('train.py', 'train', [str(config)])


def test_arguments_arrive_unchanged(config, tmp_path, monkeypatch):
    script = tmp_path / 'stock' / 'train.py'
    script.parent.mkdir()
    script.write_text(
        'import json, pathlib, sys\n'
        'if __name__ == "__main__":\n'
        '    pathlib.Path(sys.path[0], "seen.json").write_text(json.dumps(sys.argv))\n'
    )
    monkeypatch.setattr(launch, 'find_stock_script', lambda scope, name: script)
    monkeypatch.setattr(sys, 'argv', ['tools/train.py'])
    monkeypatch.setattr(sys, 'path', ['tools', *sys.path[1:]])
    argv = [str(config), '--cfg-options', 'a.b="[(1, 2)]"', '--work-dir', 'with space']
    launch.hand_over('train.py', 'train', argv)
    assert json.loads((script.parent / 'seen.json').read_text()) == [str(script), *argv]


@pytest.mark.parametrize(
    ('argv', 'load_from', 'more'),
    [
        (['{config}', '--resume'], 'a.pth', ['load_from=None', 'start_from=a.pth']),
        (['--resume', '{config}', '--amp'], 'a.pth', ['load_from=None', 'start_from=a.pth']),
        (['{config}', '--resume', 'auto'], 'a.pth', ['load_from=None', 'start_from=a.pth']),
        (['{config}', '--resume=auto'], 'a.pth', ['load_from=None', 'start_from=a.pth']),
        (['{config}'], 'a.pth', []),
        (['{config}', '--resume'], None, []),
        (['{config}', '--resume', 'epoch_1.pth'], 'a.pth', []),
        (['{config}'], 'a.pth', []),
    ],
)
def test_resume_keeps_where_to_begin(config, argv, load_from, more):
    argv = [a.replace('{config}', str(config)) for a in argv]
    found = launch.settle_resume(Config(dict(load_from=load_from)), argv)
    assert found == (['--cfg-options', *more] if more else [])


def test_processes_join_on_the_cpu_only(monkeypatch):
    joined = []
    monkeypatch.setattr(launch.torch.distributed, 'init_process_group', joined.append)
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('RANK', raising=False)
    cfg = Config(dict(model_wrapper_cfg=dict(find_unused_parameters=True)))
    assert launch.join_processes_on_cpu(cfg) == [] == joined
    monkeypatch.setenv('RANK', '0')
    option, *values = launch.join_processes_on_cpu(cfg)
    assert joined == ['gloo']
    assert option == '--cfg-options'
    assert 'model_wrapper_cfg.device_ids=None' in values
    assert 'model_wrapper_cfg.find_unused_parameters=True' in values
    monkeypatch.setattr(launch.torch.cuda, 'is_available', lambda: True)
    assert launch.join_processes_on_cpu(cfg) == []
    assert joined == ['gloo']


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_help(root, name):
    result = run(sys.executable, root / 'tools' / name)
    assert f'python tools/{name} CONFIG' in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scope', launch.SCOPES)
@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_stock_script_of_each_scope_is_reached(root, config, scope, name):
    """Its own argument parser answers, whichever package the config belongs to."""
    if not is_installed(scope):
        pytest.skip(f'{scope} not installed')
    config.write_text(f"default_scope = '{scope}'\n")
    result = run(sys.executable, root / 'tools' / name, config, 'x.pth', '--nonsense')
    assert result.returncode == 2
    assert 'unrecognized arguments:' in result.stderr and '--nonsense' in result.stderr


@pytest.mark.slow
def test_train_and_test(root, config, tmp_path):
    work = tmp_path / 'work'
    tool = root / 'tools' / 'train.py'
    result = run(sys.executable, tool, config, '--work-dir', work)
    assert result.returncode == 0, result.stderr
    assert len([s for s in read_scalars(work) if 'loss' in s]) == 4
    checkpoint = work / 'epoch_1.pth'
    tool = root / 'tools' / 'test.py'
    result = run(sys.executable, tool, config, checkpoint, '--work-dir', tmp_path / 'test')
    assert result.returncode == 0, result.stderr
    assert 'accuracy/top1' in result.stdout + result.stderr


@pytest.mark.slow
def test_two_processes_on_the_cpu(root, config, tmp_path):
    work = tmp_path / 'work'
    tool = root / 'tools' / 'dist_train.sh'
    result = run('bash', tool, config, '2', '--work-dir', work, PORT='29611')
    assert result.returncode == 0, result.stderr
    # Eight images, two processes, two images each: two steps.
    assert len([s for s in read_scalars(work) if 'loss' in s]) == 2
    tool = root / 'tools' / 'dist_test.sh'
    result = run('bash', tool, config, work / 'epoch_1.pth', '2', PORT='29612')
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh'])
def test_usage_of_the_distributed_scripts(root, name):
    result = run('bash', root / 'tools' / name, 'config.py')
    assert result.returncode == 2
    assert f'bash tools/{name} CONFIG' in result.stdout
