"""Every shipped config: its name says what it holds, and it trains a step at reduced width."""

import copy
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config

from itpn_mm.backbones import HiViT
from itpn_mm.engine import check_config

from .tiny_configs import ROOT, parse, shrink, slow_unless, train

PATHS = {
    path.stem: path
    for path in sorted((ROOT / 'configs').rglob('*.py'))
    if '_base_' not in path.parts
}
PRETRAINING = [name for name, path in PATHS.items() if path.parent.name == 'pretraining']
# Those with a teacher of another kind have tests of their own, test_configs_distill.py.
DISTILLATION = [name for name in PRETRAINING if name.startswith('itpn-clip-')]
PRETRAINING = [name for name in PRETRAINING if name not in DISTILLATION]
# Detectors of the demo on aerial photographs, upright and rotated: test_demo_detection.py.
AERIAL = [name for name in PATHS if name.endswith('_aerial')]
# Those of MaskDINO: test_configs_maskdino.py; of UPerNet: test_configs_segmentation.py; both of the
# demo: test_demo_segmentation.py.
NUCLEI = [name for name in PATHS if re.match('(maskdino|upernet)_hivit-demo-', name)]
MASKDINO = [name for name in PATHS if name.startswith('maskdino_') and name not in NUCLEI]
SEGMENTATION = [
    name
    for name, path in PATHS.items()
    if path.parent.name == 'segmentation' and name not in NUCLEI
]
# Other rotated ones, and Mask R-CNN on Fast-iTPN: test_configs_acceleration.py.
ACCELERATION = [
    name
    for name, path in PATHS.items()
    if name.startswith('mask-rcnn_fastitpn-')
    or (path.parent.name == 'rotated_detection' and name not in AERIAL)
]
# Of the other upright ones Mask R-CNN by pixels is tested here, the rest in
# test_configs_detection.py.
UPRIGHT = [
    name
    for name, path in PATHS.items()
    if path.parent.name == 'detection' and name not in (*ACCELERATION, *AERIAL, *MASKDINO, *NUCLEI)
]
DETECTION = [name for name in UPRIGHT if re.match('mask-rcnn_hivit-.*-itpn-pixel_', name)]
CLASSIFICATION = [name for name, path in PATHS.items() if path.parent.name == 'classification']
DEMO = [name for name, path in PATHS.items() if path.parent.name == 'demo']

PRETRAINING_NAME = re.compile(
    r'itpn-pixel_hivit-(?P<arch>tiny|small|base|large|demo)-p16'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)?-coslr-(?P<epochs>\d+)e_(?P<data>\w+)'
)
DETECTION_NAME = re.compile(
    r'mask-rcnn_hivit-(?P<arch>base|large|demo)-itpn-pixel_tpn'
    r'_(?P<gpus>\d+)xb(?P<batch>\d+)(?P<amp>-amp)?(?P<crop>-ms-crop)?-(?P<times>\d+)(?P<unit>[xe])'
    r'(?P<random_pyramid>-wo-pyramid)?_(?P<data>\w+)'
)
DATA_ROOTS = {
    'in1k': 'data/imagenet/',
    'photographs': 'data/demo/photographs',
    'coco': 'data/coco/',
    'objects365v1': 'data/Objects365/Obj365_v1/',
    'nuclei': 'data/demo/nuclei/',
    'dota': 'data/split_ss_dota/',
    'ade20k': 'data/ade/ADEChallengeData2016',
}
HOSTS = {'detection': 'mmdet', 'rotated_detection': 'mmrotate', 'segmentation': 'mmseg'}


def read(name: str) -> Config:
    path = PATHS[name]
    pytest.importorskip(HOSTS.get(path.parent.name, 'mmpretrain'))
    return copy.deepcopy(parse(path))


def fields(pattern: re.Pattern, name: str) -> dict[str, str | None]:
    found = pattern.fullmatch(name)
    assert found, f'{name} does not follow the naming scheme'
    return found.groupdict()


def check_arch(arch: str | dict, named: str) -> None:
    if named == 'demo':
        assert set(arch) == {'embed_dims', 'depths', 'num_heads'}
    else:
        assert arch == named and arch in HiViT.arch_zoo


def check_common(cfg: Config, name: dict, scope: str) -> None:
    assert cfg.default_scope == scope
    assert (cfg.optim_wrapper.type == 'AmpOptimWrapper') == (name['amp'] is not None)
    batch = int(name['batch'])
    assert cfg.train_dataloader.batch_size == batch
    if name['arch'] != 'demo':
        assert cfg.auto_scale_lr.base_batch_size == int(name['gpus']) * batch
    assert cfg.train_dataloader.dataset.data_root == DATA_ROOTS[name['data']]


@pytest.mark.parametrize('name', PATHS)
def test_hooks_of_the_runtime(name):
    hooks = {key: hook.type for key, hook in read(name).default_hooks.items()}
    assert hooks['checkpoint'] == 'itpn_mm.AtomicCheckpointHook'
    assert hooks['preflight'] == 'itpn_mm.PreflightHook'
    assert (hooks['seed'], hooks['nonfinite']) == ('itpn_mm.SeedHook', 'itpn_mm.NonFiniteHook')


def test_the_list_of_configs():
    assert len(PRETRAINING) >= 17 and len(DETECTION) >= 6
    # `classification` and `demo` have tests of their own: test_configs_classification.py and
    # test_demo_digits.py.
    tested = {*PRETRAINING, *DISTILLATION, *UPRIGHT, *ACCELERATION, *CLASSIFICATION, *DEMO, *AERIAL}
    tested |= {*MASKDINO, *SEGMENTATION, *NUCLEI}
    assert tested == set(PATHS), 'a folder without tests'
    for arch in ('tiny', 'small', 'base', 'large'):
        for epochs in (300, 400, 800, 1600):
            assert f'itpn-pixel_hivit-{arch}-p16_8xb512-amp-coslr-{epochs}e_in1k' in PRETRAINING


@pytest.mark.parametrize('name', PRETRAINING)
def test_pretraining_name_says_what_it_holds(name):
    cfg, said = read(name), fields(PRETRAINING_NAME, name)
    check_common(cfg, said, 'mmpretrain')
    check_arch(cfg.model.backbone.arch, said['arch'])
    epochs = int(said['epochs'])
    assert cfg.train_cfg.max_epochs == epochs
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin) == ('LinearLR', 0)
    assert (cosine.type, cosine.begin, cosine.end) == ('CosineAnnealingLR', warm_up.end, epochs)
    assert cosine.T_max == epochs - warm_up.end
    assert cfg.model.type == 'itpn_mm.iTPN'
    if said['arch'] != 'demo':
        assert warm_up.end == 40
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.lr, optimizer.weight_decay) == (pytest.approx(2.4e-3), 0.05)
        assert tuple(optimizer.betas) == (0.9, 0.95)
        assert (cfg.model.masking.ratio, cfg.model.mfm_head.loss_weight) == (0.75, 0.3)
        assert cfg.model.teacher.momentum == 0.996


@pytest.mark.parametrize('name', DETECTION)
def test_detection_name_says_what_it_holds(name):
    cfg, said = read(name), fields(DETECTION_NAME, name)
    check_common(cfg, said, 'mmdet')
    check_arch(cfg.model.backbone.arch, said['arch'])
    demo = said['arch'] == 'demo'
    epochs = int(said['times']) * (12 if said['unit'] == 'x' else 1)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.model.type == 'MaskRCNN'
    if not demo:
        milestones = [int(epochs * Fraction(3, 4)), int(epochs * Fraction(11, 12))]
        assert cfg.param_scheduler[1].milestones == milestones
        assert cfg.optim_wrapper.optimizer.lr == {12: 2e-4, 36: 1.5e-4}[epochs]
        rate = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
        assert rate == {'base': 0.9, 'large': 0.95}[said['arch']]
    assert cfg.param_scheduler[1].end == epochs
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert ('RandomChoice' in steps) == (said['crop'] is not None)
    for part, prefix in (('backbone', 'backbone.'), ('neck', 'neck.')):
        init_cfg = cfg.model[part].init_cfg
        if part == 'neck' and said['random_pyramid']:
            assert init_cfg is None
            continue
        assert (init_cfg.type, init_cfg.prefix) == ('Pretrained', prefix)
        assert demo or f'hivit-{said["arch"]}-' in init_cfg.checkpoint


def test_demo_starts_from_its_own_pretraining():
    first, second = (next(n for n in names if 'demo' in n) for names in (PRETRAINING, DETECTION))
    pretraining, detection = read(first), read(second)
    last = f'epoch_{pretraining.train_cfg.max_epochs}.pth'
    assert detection.model.backbone.init_cfg.checkpoint == f'work_dirs/demo/pretrain/{last}'
    assert detection.model.backbone.arch == pretraining.model.backbone.arch


def test_longer_schedules_inherit_from_the_shorter():
    for name in PRETRAINING:
        said = fields(PRETRAINING_NAME, name)
        if said['arch'] != 'demo' and said['epochs'] != '300':
            shorter = re.sub(r'-\d+e_', '-300e_', name)
            assert f"_base_ = './{shorter}.py'" in PATHS[name].read_text()


def assert_trained(cfg: Config, runner, gradients: dict) -> None:
    """One step was made; each parameter that trains had a gradient that is finite and not 0."""
    assert runner.iter == 1
    trained = {n for n, p in runner.model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    wrong = [n for n, value in gradients.items() if not (value.isfinite() and value > 0)]
    assert wrong == []
    assert_hooks(cfg, runner)


def assert_hooks(cfg: Config, runner) -> None:
    """The runner has the hooks that the config names."""
    named = [*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])]
    built = {type(hook).__name__ for hook in runner.hooks}
    assert {hook.type.rpartition('.')[2] for hook in named} <= built


@pytest.mark.parametrize('name', slow_unless(PRETRAINING, '-300e_|demo'))
def test_pretraining_config_trains_a_step(name, tmp_path):
    cfg = shrink(read(name), name, tmp_path)
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)
    assert runner.model.teacher.steps == 2  # the start and one step
    assert not any(key.startswith('teacher') for key in gradients)
    scalars = runner.message_hub.log_scalars
    for loss in ('loss', 'loss_pixel', 'loss_mfm_p4', 'loss_mfm_p8', 'loss_mfm_p16'):
        assert scalars[f'train/{loss}'].current() > 0
    groups = runner.optim_wrapper.optimizer.param_groups
    decays = {p: group['weight_decay'] for group in groups for p in group['params']}
    for key in gradients:
        parameter = runner.model.get_parameter(key)
        plain = parameter.ndim == 1 or 'pos_embed' in key or 'mask_token' in key
        assert decays[parameter] == (0 if plain else 0.05), key


@pytest.fixture(scope='session')
def pretrained(tmp_path_factory):
    """Checkpoint of the pre-training config of an architecture after a step."""
    done: dict[str, Path] = {}

    def get(arch: str) -> Path:
        if arch not in done:
            name = next(n for n in PRETRAINING if fields(PRETRAINING_NAME, n)['arch'] == arch)
            work_dir = tmp_path_factory.mktemp(f'pretrained-{arch}')
            cfg = shrink(read(name), name, work_dir)
            cfg.randomness = dict(seed=1)  # not what a model starts with that loads nothing
            train(cfg)
            (done[arch],) = work_dir.glob('epoch_*.pth')
        return done[arch]

    return get


@pytest.mark.parametrize('name', DETECTION)
def test_detection_config_trains_a_step_and_predicts(name, tmp_path, pretrained):
    """From the file that our pre-training wrote; the evaluation is the stock one."""
    said = fields(DETECTION_NAME, name)
    cfg = read(name)
    checkpoint = str(pretrained(said['arch']))
    parts = ('backbone',) if said['random_pyramid'] else ('backbone', 'neck')
    for part in parts:
        cfg.model[part].init_cfg.checkpoint = checkpoint
    cfg = shrink(cfg, name, tmp_path)
    runner, gradients = train(cfg)
    assert_trained(cfg, runner, gradients)

    # The rate of the first warm-up step is so small that the start can still be read off.
    source = torch.load(checkpoint, weights_only=False)['state_dict']
    for part in ('backbone', 'neck'):
        for key, value in getattr(runner.model, part).state_dict().items():
            if value.ndim < 2 and part not in parts:
                continue  # biases and norms start at 0 and 1 anyway
            same = torch.allclose(value, source[f'{part}.{key}'], atol=1e-4)
            assert same == (part in parts), f'{part}.{key}'

    groups = runner.optim_wrapper.optimizer.param_groups
    assert {group['layer_id'] for group in groups} == {0, 1, 2}  # stem, attention block, heads
    rate = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
    assert {round(g['lr_scale'], 6) for g in groups} == {round(rate**k, 6) for k in range(3)}

    scalars = runner.message_hub.log_scalars
    for loss in ('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'):
        assert scalars[f'train/{loss}'].current() > 0, loss
    assert 'val/coco/segm_mAP' in scalars  # the validation of the stock loop predicted something


@pytest.mark.parametrize('name', PATHS)
def test_missing_data_are_named_before_anything_is_built(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = read(name).train_dataloader.dataset.data_root
    message = f'`train_dataloader.dataset.data_root` is {root!r}, which does not exist'
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        check_config(read(name))


@pytest.mark.parametrize('name', DETECTION)
def test_missing_pretraining_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = shrink(read(name), name, tmp_path)
    with pytest.raises(FileNotFoundError, match=r'`model\.backbone\.init_cfg\.checkpoint` is '):
        check_config(cfg, 'train')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({}, r'checkpoint has embed_dims=48 but HiViT was built with embed_dims=32: set'),
        ({'model.neck.in_channels': (8, 16, 24)}, r'`neck\.in_channels` is \(8, 16, 24\), but'),
        ({'model.rpn_head.in_channels': 8}, r'`rpn_head\.in_channels` is \(8, 8, 8, 8, 8\), but'),
    ],
)
def test_misfits_stop_the_runner_before_training(changes, message, tmp_path, pretrained):
    name = 'mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco'
    cfg = read(name)
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg.checkpoint = str(pretrained('large'))
    cfg = shrink(cfg, name, tmp_path)
    cfg.merge_from_dict(changes)
    with pytest.raises(ValueError, match=message) as info:
        train(cfg)
    assert '\n' not in str(info.value)


WITHOUT_TEACHER = {
    'model.mfm_head': None,
    'model.teacher': None,
    'custom_hooks': [],
}


def test_variant_pixels_alone(tmp_path):
    """As configs/pretraining/README.md says."""
    name = PRETRAINING[0]
    cfg = read(name)
    cfg.merge_from_dict(WITHOUT_TEACHER)
    runner, gradients = train(shrink(cfg, name, tmp_path))
    assert runner.model.teacher is None
    assert all(value > 0 for value in gradients.values())
    assert 'train/loss_mfm_p4' not in runner.message_hub.log_scalars


def test_variant_visible_positions(tmp_path):
    """As configs/pretraining/README.md says."""
    name = PRETRAINING[0]
    cfg = read(name)
    cfg.model.mfm_head.update(positions='visible', in_channels=cfg.model.neck.out_channels)
    runner, gradients = train(shrink(cfg, name, tmp_path))
    assert_trained(cfg, runner, gradients)


def write_for_processes(name: str, tmp_path: Path, **changes) -> Path:
    cfg = shrink(read(name), name, tmp_path)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.max_epochs = 3
    cfg.param_scheduler = []  # a warm-up would hide what differs
    cfg.merge_from_dict(changes)
    path = tmp_path / 'two_processes.py'
    cfg.dump(path)
    return path


def run_two_processes(path: Path, tmp_path: Path) -> list[dict]:
    """What each of two processes that train the config at `path` had at the start and the end."""
    script = ROOT / 'tests' / 'two_processes.py'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    command = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=0']
    command += ['--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', script, path, tmp_path]
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2)]


@pytest.mark.slow
def test_two_processes_stay_equal(tmp_path):
    """Three steps with an image each: gradients are averaged, parameters and teacher stay equal."""
    path = write_for_processes(PRETRAINING[0], tmp_path)
    first, second = run_two_processes(path, tmp_path)
    assert first['losses'] != second['losses']  # an image and a mask of its own each
    for part in ('start', 'end'):
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            assert torch.equal(value, second[part][key]), f'{part}: {key}'
    moved = [key for key, v in first['end'].items() if not torch.equal(v, first['start'][key])]
    assert {key.split('.')[0] for key in moved} == {
        'backbone',
        'neck',
        'decoder',
        'head',
        'mfm_head',
        'teacher',
    }
    assert first['end']['teacher.steps'] == 1 + 3


METAFILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']


def test_the_index_names_every_folder():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in PATHS.values()}
    assert {f'{folder}/metafile.yml' for folder in folders} == set(METAFILES)
    assert all((ROOT / folder / 'README.md').is_file() for folder in folders)


@pytest.mark.parametrize('metafile', METAFILES)
def test_metafile(metafile):
    content = yaml.safe_load((ROOT / metafile).read_text())
    collections = {collection['Name']: collection for collection in content['Collections']}
    for collection in collections.values():
        assert (ROOT / collection['README']).is_file()
    models = content['Models']
    folder = Path(metafile).parent
    expected = sorted(n for n, path in PATHS.items() if path.parent == ROOT / folder)
    assert sorted(model['Name'] for model in models) == expected
    for model in models:
        assert model['Config'] == f'{folder}/{model["Name"]}.py'
        assert (ROOT / model['Config']).is_file()
        assert model['In Collection'] in collections
        loop = read(model['Name']).train_cfg
        length = loop.get('max_epochs', loop.get('max_iters'))
        key = 'Epochs' if 'max_epochs' in loop else 'Iterations'
        assert model['Metadata'][key] == length
        assert 'Weights' not in model  # there are none
        for result in model.get('Results', ()):  # no figure is ours
            assert re.match('paper, (Table|Figure) ', model['Metadata']['Source of Results'])
            assert all(metric.endswith(' (paper)') for metric in result['Metrics'])


@pytest.mark.parametrize('folder', [Path(metafile).parent.name for metafile in METAFILES])
def test_readme_of_a_folder_names_its_configs(folder):
    text = (ROOT / 'configs' / folder / 'README.md').read_text()
    named = set()
    for cell in re.findall(r'^\| `([^`]+)` \|', text, flags=re.MULTILINE):
        if '_' not in cell:
            continue  # of another table
        match = re.fullmatch(r'(.*)\{(.*)\}(.*)', cell)
        parts = match[2].split(',') if match else ['']
        named |= {f'{match[1]}{part}{match[3]}' if match else cell for part in parts}
    assert named == {n for n, path in PATHS.items() if path.parent.name == folder}
