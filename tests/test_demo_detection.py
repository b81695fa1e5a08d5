"""The demo on aerial photographs: configs, plan, tasks, command; the whole in smoke runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

pytest.importorskip('matplotlib')
pytest.importorskip('mmdet')
shapely = pytest.importorskip('shapely')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_aerial  # noqa: E402
from demo_data import aerial as data_set  # noqa: E402
from demo_run import aerial as study  # noqa: E402
from demo_run import aerial_plan as plan  # noqa: E402
from demo_run import aerial_report as report  # noqa: E402
from demo_run.chains import SEEDS  # noqa: E402
from demo_run.steps import StepError  # noqa: E402

from .test_configs import AERIAL, PRETRAINING, read  # noqa: E402
from .test_configs_acceleration import SerialPool, serial_pool  # noqa: E402, F401
from .tiny_configs import train, write_coco, write_dota  # noqa: E402

NAME = re.compile(
    r'(?P<method>faster-rcnn|dino-4scale|rotated-faster-rcnn-le90)_hivit-demo-itpn-pixel_tpn'
    r'_1xb(?P<batch>\d+)-(?P<epochs>\d+)e_aerial'
)
ROTATED = [name for name in AERIAL if name.startswith('rotated')]
CHAINS = [(s, d) for s, task in plan.STUDIES.items() for d in task.detectors]

# ----------------------------------------------------------------------------------------- configs


def test_each_detector_has_a_config():
    found = {Path(study.find_config(plan.STUDIES[s].detectors[d].config)).stem for s, d in CHAINS}
    assert found == set(AERIAL) and len(AERIAL) == 3


@pytest.mark.parametrize('name', AERIAL)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), NAME.fullmatch(name)
    rotated = name in ROTATED
    types = {
        'faster-rcnn': 'FasterRCNN',
        'dino-4scale': 'itpn_mm.DINO',
        'rotated-faster-rcnn-le90': 'mmdet.FasterRCNN',
    }
    assert cfg.model.type == types[said['method']]
    assert cfg.train_dataloader.batch_size == int(said['batch'])
    epochs = int(said['epochs'])
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[1].T_max == cfg.default_hooks.checkpoint.interval == epochs
    folder = 'data/demo/aerial_rotated/' if rotated else 'data/demo/aerial/'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == folder
        assert loader.dataset.metainfo.classes == (data_set.CLASS,)
    parts = [cfg.train_dataloader.dataset.ann_file, cfg.val_dataloader.dataset.ann_file]
    assert ['train' in part for part in parts] == [True, False]
    assert cfg.optim_wrapper.constructor == 'itpn_mm.LayerDecayOptimWrapperConstructor'


@pytest.mark.parametrize('name', AERIAL)
def test_detector_starts_from_the_pretraining_of_the_demo(name):
    [pretraining] = [read(n) for n in PRETRAINING if 'demo' in n]
    model, epochs = read(name).model, pretraining.train_cfg.max_epochs
    for part in ('backbone', 'neck'):
        settings, expected = dict(model[part]), dict(pretraining.model[part])
        assert settings.pop('init_cfg') == dict(
            type='Pretrained',
            checkpoint=f'work_dirs/demo/pretrain/epoch_{epochs}.pth',
            prefix=f'{part}.',
        )
        for own in ('drop_path_rate', 'out_strides'):
            settings.pop(own, None), expected.pop(own, None)
        assert settings == expected


def use_tiny_data(cfg: Config, folder: Path, rotated: bool) -> None:
    for key in ('train_dataloader', 'val_dataloader'):
        dataset = cfg[key].dataset
        if rotated:
            images = folder / dataset.data_prefix.img_path
            write_dota(folder / dataset.ann_file, images, ('tree',))
        else:
            write_coco(folder / dataset.ann_file, folder / dataset.data_prefix.img, ('tree',))
            cfg.val_evaluator.ann_file = str(folder / dataset.ann_file)
        dataset.data_root = str(folder)
        cfg[key].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None


@pytest.mark.parametrize('name', AERIAL)
def test_a_step_and_a_validation(name, tmp_path, request):
    """At its own width, for it is small."""
    rotated = name in ROTATED
    pool: SerialPool | None = request.getfixturevalue('serial_pool') if rotated else None
    cfg = read(name)
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    use_tiny_data(cfg, tmp_path / 'data', rotated)
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.update(work_dir=str(tmp_path), experiment_name=f'{name}_step', log_level='ERROR')
    if 'roi_head' in cfg.model:
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    runner, gradients = train(cfg)
    assert runner.iter == 1 and all(value.isfinite() for value in gradients.values())
    assert set(gradients) == {n for n, p in runner.model.named_parameters() if p.requires_grad}
    if rotated:
        assert 'val/dota/mAP' in runner.message_hub.log_scalars and pool.detections > 0
    else:
        assert 0 <= runner.message_hub.get_scalar('val/coco/bbox_mAP').current() <= 1


# --------------------------------------------------------------------------------- plan and chains


def test_plan_compares_pairs_of_seeds():
    names = list(plan.costs('detection', compare=True))
    assert len(names) == 2 * 2 * len(SEEDS) * 2
    assert 'dino-scratch-seed2/train' in names and 'faster-rcnn-pretrained-seed0/evaluate' in names
    # The first seed is through before the second begins: an interrupted study still compares.
    assert [seed for *_, seed in plan.chains('detection', True)] == sorted([*SEEDS] * 4)
    assert plan.chains('rotated', False) == [('rotated-faster-rcnn', 'pretrained', 0)]
    assert set(plan.chains('detection', False)) <= set(plan.chains('detection', True))


def chain(work, name='detection', detector='dino', start='pretrained', seed=1, **options):
    return study.Chain(name, detector, start, seed, work, Path('pretrained.pth'), **options)


@pytest.mark.parametrize(('name', 'detector'), CHAINS)
def test_config_of_a_chain_is_the_shipped_one(name, detector, tmp_path):
    if name == 'rotated':
        pytest.importorskip('mmrotate')
    one, other, tiny = (
        chain(tmp_path, name, detector, start, smoke=smoke)
        for start, smoke in (('pretrained', False), ('scratch', False), ('pretrained', True))
    )
    shipped, ours, scratch = Config.fromfile(ROOT / one.path), one.config(), other.config()
    for part in ('backbone', 'neck'):
        assert ours.model[part].init_cfg.checkpoint == 'pretrained.pth'
        ours.model[part].init_cfg.checkpoint = shipped.model[part].init_cfg.checkpoint
        assert scratch.model[part].init_cfg is None
        assert tiny.config().model[part].init_cfg is None
    assert ours.model == shipped.model and ours.optim_wrapper == shipped.optim_wrapper
    assert ours.param_scheduler == shipped.param_scheduler == scratch.param_scheduler
    assert ours.randomness.seed == scratch.randomness.seed == 1
    epochs = ours.train_cfg.max_epochs
    assert epochs == shipped.train_cfg.max_epochs and tiny.config().train_cfg.max_epochs == 1
    assert (ours.train_cfg.get('val_begin', 1) > epochs) == (name == 'rotated')
    assert len({one.key, other.key, tiny.key}) == 3


def test_chain_trains_and_evaluates_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, 'INPUTS', ('LICENSE',))  # nobody edits that meanwhile
    runs = []

    class Tester:
        def test(self):
            runs.append('test')
            return {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'coco/bbox_mAP_75': 0.1}

    def fake_train(cfg, folder, name):
        runs.append((name, folder.relative_to(tmp_path).as_posix()))
        return {'loss': 1.5}

    def fake_tester(cfg, trained, folder, name):
        assert cfg.test_evaluator.outfile_prefix == str(trained.parent / study.PREDICTIONS)
        return Tester()

    monkeypatch.setattr(study, 'train', fake_train)
    monkeypatch.setattr(study, 'make_tester', fake_tester)
    chain(tmp_path).run()
    said = capsys.readouterr().out.splitlines()
    assert runs == [('dino-pretrained-seed1_train', 'dino/pretrained/seed1/train'), 'test']
    assert 'task done: dino-pretrained-seed1/evaluate: AP 25.0, AP50 50.0' in said
    names = {f'dino-pretrained-seed1/{task}' for task in ('train', 'evaluate')}
    assert names <= set(plan.costs('detection', True))
    chain(tmp_path).run()
    assert len(runs) == 2 and capsys.readouterr().out.count(': complete') == 2
    chain(tmp_path, smoke=True).run()
    assert len(runs) == 4


# ------------------------------------------------------------------------------------- the command


def test_command_runs_what_is_planned(tmp_path, monkeypatch, capsys):
    seen = {}
    last = tmp_path / 'last_checkpoint'
    last.write_text('weights.pth')
    monkeypatch.setattr(demo_aerial, 'prepare_study', lambda *args: seen.update(prepare=args))
    monkeypatch.setattr(demo_aerial, 'last_checkpoint', lambda: last)

    def fake_parallel(commands, jobs, logs, progress):
        seen.update(commands=commands, jobs=jobs)
        assert set(progress.costs) == set(plan.costs('detection', True))

    monkeypatch.setattr(demo_aerial, 'run_parallel', fake_parallel)
    monkeypatch.setattr(report, 'write_report', lambda *args: seen.update(report=args) or 'table')
    old = tmp_path / 'work/dino/pretrained'
    old.mkdir(parents=True)
    command = ['detection', '--compare', '--jobs', '2', '--work-dir', str(tmp_path / 'work')]
    assert demo_aerial.main(command) == 0
    assert 'table' in capsys.readouterr().out and old.exists()
    assert seen['prepare'] == ('aerial', False) and seen['jobs'] == 2
    assert len(seen['commands']) == 12
    words = seen['commands']['dino-scratch-seed2'][1:]
    assert words[:5] == ['tools/demo_aerial_chain.py', 'detection', 'dino', 'scratch', '2']
    assert words[-2:] == ['--pretrained', 'weights.pth']
    assert seen['report'] == ('detection', tmp_path / 'work', True)
    assert demo_aerial.main([*command, '--fresh']) == 0 and not old.exists()

    def fail(*args):
        raise StepError('step broke')

    monkeypatch.setattr(demo_aerial, 'prepare_study', fail)
    assert demo_aerial.main(command) == 1
    assert capsys.readouterr().err == 'demo: step broke\n'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['detektion'], "unknown argument 'detektion'"),
        (['detection', '--copmare'], '--copmare'),
        (['rotated', '--work-dir'], 'needs a folder'),
        (['rotated', '--jobs', '0'], '--jobs needs a number'),
        (['detection', '--jobs'], '--jobs needs a number'),
        (['--jobs', '2'], '--jobs is not for nuclei'),
        (['digits', '--compare'], '--compare is not for digits'),
        (['acceleration', '--seeds=4'], '--seeds needs a number from 1 to 3'),
        (['all', '--seeds', '1'], '--seeds is not for all'),
        (['all', '--fresh=1'], '--fresh takes no value'),
        (['report', '--smoke'], '--smoke is not for report'),
    ],
)
def test_wrong_argument_is_told_before_the_set_up(arguments, message):
    done = subprocess.run(
        ['bash', 'tools/demo.sh', *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and message in done.stderr
    assert 'environment' not in done.stdout


def test_help_tells_all_demos():
    done = subprocess.run(
        ['bash', 'tools/demo.sh', '--help'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for word in (
        'nuclei',
        'detection',
        'rotated',
        'segmentation',
        'digits',
        'acceleration',
        'all',
        'report',
        '--compare',
        '--seeds',
        '--jobs',
        '--work-dir',
    ):
        assert word in done.stdout
    assert done.stdout.rstrip().endswith('can be run alone.') and 'set -' not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', plan.STUDIES)
def test_whole_demo(name, tmp_path):
    if name == 'rotated':
        pytest.importorskip('mmrotate')
    made_here = (Path(sys.prefix) / '.itpn_mm').is_dir()
    command = ['bash', 'tools/demo.sh'] if made_here else [sys.executable, 'tools/demo_aerial.py']
    command += [name, '--smoke', '--work-dir', str(tmp_path)]

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments],
            cwd=ROOT,
            env={**os.environ, 'ITPN_VENV': sys.prefix},
            capture_output=True,
            text=True,
        )

    first = run()
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert 'eta ' in first.stdout
    for picture in ('detections', 'photograph', 'curves'):
        assert min(Image.open(tmp_path / f'{picture}.png').size) > 300
    summary = json.loads((tmp_path / 'summary.json').read_text())
    detectors = plan.STUDIES[name].detectors
    assert [row['detector'] for row in summary['rows']] == list(detectors)
    again = run()
    assert again.returncode == 0 and again.stdout.count(': complete\n') == 2 * len(detectors)
