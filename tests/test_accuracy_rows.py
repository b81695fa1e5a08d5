"""What tools/benchmark_accuracy.py is made of: index, data, checkpoints, commands, figures."""

import json
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from .tiny_configs import ROOT, parse

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
sys.path.insert(0, str(ROOT / 'tools'))

from accuracy.checkpoints import Checkpoints
from accuracy.data import (
    DATA_ROOTS,
    PARTS,
    data_root,
    dataset_name,
    derive_config,
    describe_images,
    describe_part,
    move_data,
)
from accuracy.launchers import Launcher
from accuracy.report import compare
from accuracy.runs import last_error
from accuracy.zoo import read_index, select

from .tiny_zoo import REAL


def test_index_of_the_project():
    """All but the pre-training, with figures that are said to be the paper's."""
    entries = {entry.name: entry for entry in read_index(ROOT / 'model-index.yml')}
    configs = {
        path.stem
        for path in ROOT.glob('configs/*/*.py')
        if path.parent.name not in ('_base_', 'pretraining')
    }
    assert entries.keys() == configs
    entry = entries[Path(REAL['coco']).name]
    assert entry.paper == {'box AP': 53.0, 'mask AP': 46.5}
    assert (entry.source, entry.task) == ('Table V', 'detection')
    assert entry.config == ROOT / f'configs/{REAL["coco"]}.py'


def test_choice():
    entries = read_index(ROOT / 'model-index.yml')
    assert select(entries, [], None) == entries
    chosen = select(entries, ['dino-*_coco', 'upernet_*'], ['detection', 'segmentation'])
    assert {entry.name.split('_')[0] for entry in chosen} == {
        *('dino-4scale', 'dino-5scale', 'upernet')
    }
    with pytest.raises(
        ValueError,
        match=r"'upernet_hivit' matches no config .* of segmentation; "
        r'the nearest is upernet_hivit-',
    ):
        select(entries, ['upernet_hivit'], ['segmentation'])


@pytest.mark.parametrize(
    ('config', 'dataset', 'images', 'part'),
    [
        (REAL['imagenet'], 'imagenet', '256, crop 224', 'val'),
        (REAL['coco'], 'coco', '1333 x 800', 'annotations/instances_val2017.json'),
        (
            'detection/maskdino_r50_8xb2-amp-lsj-50e_coco-panoptic',
            *('coco', '1333 x 800', 'annotations/panoptic_val2017.json'),
        ),
        (
            'detection/dino-4scale_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-12e_objects365v1',
            *('objects365', '1333 x 800', 'annotations/objects365_val.json'),
        ),
        (REAL['ade20k'], 'ade20k', '2048 x 512, windows of 512 x 512', 'images/validation'),
        (REAL['dota'], 'dota', '1024 x 1024', 'trainval/annfiles'),
    ],
)
def test_data_of_a_shipped_config_move(config, dataset, images, part, tmp_path):
    """All paths of test data and evaluators, and nothing else."""
    if dataset == 'dota':
        pytest.importorskip('mmrotate')
    path = ROOT / f'configs/{config}.py'
    shipped = parse(path).copy()
    assert (describe_images(shipped), describe_part(shipped)) == (images, part)
    root = data_root(shipped)
    assert dataset_name(root) == dataset and root == DATA_ROOTS[dataset]
    derived, new = tmp_path / 'derived.py', "/mnt/my, data's"
    derived.write_text(derive_config(path, move_data(shipped, new)))
    moved = Config.fromfile(derived)
    assert data_root(moved) == new
    before, after = shipped.to_dict(), moved.to_dict()
    for key in before:
        if key not in PARTS:
            assert after[key] == before[key], key
    expected, text = (json.dumps([cfg[part] for part in PARTS]) for cfg in (before, after))
    assert '"data/' not in text
    assert text.replace(new, root) == expected


def test_folders_with_a_like_name_stay():
    dataset = dict(data_root='data/coco', ann_file='data/coco2/x.json', data_prefix='data/coco')
    cfg = Config(dict(test_dataloader=dict(dataset=dataset), test_evaluator=None))
    changes = move_data(cfg, '/new')
    assert changes == {'test_dataloader': {'dataset': {'data_root': '/new', 'data_prefix': '/new'}}}


def test_checkpoints_are_found_by_name(tmp_path):
    names = ['a_coco', 'a_coco-384px', 'b_coco', 'c_coco', 'd_coco', 'e']
    for name in ('a_coco.pth', 'a_coco.pth.sha256', 'a_coco-384px_20260101.safetensors', 'e.txt'):
        (tmp_path / name).touch()
    for name in ('b_coco', 'c_coco'):
        (tmp_path / name).mkdir()
    (tmp_path / 'b_coco/epoch_2.pth').touch()
    (tmp_path / 'b_coco/last_checkpoint').write_text('/elsewhere/b_coco/epoch_2.pth\n')
    (tmp_path / 'd_coco.pth').touch()
    (tmp_path / 'd_coco-1234.pth').touch()
    found = Checkpoints([('e*', tmp_path / 'e.txt'), ('*', tmp_path / 'no')], None, names)
    assert found.find('e') == tmp_path / 'e.txt'
    with pytest.raises(ValueError, match=r'no checkpoint: .*/no does not exist'):
        found.find('a_coco')
    found = Checkpoints([], tmp_path, names)
    assert found.find('a_coco') == tmp_path / 'a_coco.pth'
    assert found.find('a_coco-384px') == tmp_path / 'a_coco-384px_20260101.safetensors'
    assert found.find('b_coco') == tmp_path / 'b_coco/epoch_2.pth'
    for name in ('c_coco', 'e'):
        with pytest.raises(ValueError, match=f'no file of this name in .*--checkpoint {name}=FILE'):
            found.find(name)
    with pytest.raises(ValueError, match=r'several checkpoints: d_coco-1234.pth, d_coco.pth; '):
        found.find('d_coco')


def test_commands(monkeypatch):
    for name in ('SLURM_JOB_ID', 'PARTITION', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'SRUN_ARGS'):
        monkeypatch.delenv(name, raising=False)
    job = ('name', Path('c.py'), Path('c.pth'), Path('w'), ['a=1'])
    test, rest = (
        [sys.executable, '-u', str(ROOT / 'tools/test.py'), 'c.py', 'c.pth'],
        [*('--work-dir', 'w', '--cfg-options', 'a=1')],
    )
    assert Launcher().command(*job) == [*test, *rest]
    assert Launcher('pytorch', 4).command(*job) == [
        *('bash', str(ROOT / 'tools/dist_test.sh'), 'c.py', 'c.pth', '4'),
        *rest,
    ]
    monkeypatch.setenv('PARTITION', 'gpu')
    monkeypatch.setenv('SRUN_ARGS', '--exclusive --time=10:00')
    slurm = [*test, '--launcher', 'slurm', *rest]
    assert Launcher('slurm', 16).command(*job) == [
        *('srun', '--ntasks=16', '--kill-on-bad-exit=1', '--partition=gpu', '--job-name=name'),
        *('--ntasks-per-node=8', '--gres=gpu:8', '--cpus-per-task=5'),
        *('--exclusive', '--time=10:00', *slurm),
    ]
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    monkeypatch.setenv('SLURM_CPUS_PER_TASK', '6')
    assert Launcher('slurm', 2).command(*job) == [
        *('srun', '--ntasks=2', '--kill-on-bad-exit=1', '--exclusive', '--time=10:00'),
        *slurm,
    ]
    env = Launcher('slurm', 2).environment()
    assert env['SRUN_CPUS_PER_TASK'] == '6' and env['PYTHON'] == sys.executable
    assert env['PORT'] == env['MASTER_PORT'] != Launcher().environment()['PORT']


def test_last_error():
    torchrun = [
        '[rank0]: Traceback (most recent call last):',
        '[rank0]:   File "x.py", line 1, in <module>',
        "[rank0]: FileNotFoundError: [Errno 2] No such file: 'x'",
        'E1122 torch/distributed/elastic/multiprocessing/api.py] failed (exitcode: 1)',
        'torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ',
        '====================',
    ]
    assert last_error('\n'.join(torchrun)) == "FileNotFoundError: [Errno 2] No such file: 'x'"
    assert last_error('a\ntest.py: `x` is wrong\n\n') == 'test.py: `x` is wrong'
    assert last_error('ValueError: first\nmmdet.MyError: second\nrest') == 'mmdet.MyError: second'
    assert last_error('Killed\n') == 'Killed'
    assert last_error('') == ''


def test_figures():
    """What is not there is no figure, and a difference is never made of it."""
    figures = compare(
        {'box AP': 53.0, 'FPS': 3.0},
        {'coco/bbox_mAP': -1.0, 'dota/mAP': 0.5, 'mIoU': float('nan'), 'accuracy/top1': None},
    )
    assert [(f.metric, f.measured, f.paper, f.difference) for f in figures] == [
        ('box AP', None, 53.0, None),
        ('mAP', 50.0, None, None),
        ('FPS', None, 3.0, None),
    ]
