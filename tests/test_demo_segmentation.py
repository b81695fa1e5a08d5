"""The demo of segmentation: configs, plan, tasks, command; the whole in a smoke run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

pytest.importorskip('matplotlib')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_segmentation  # noqa: E402
from demo_data import nuclei_semantic  # noqa: E402
from demo_run import segmentation as study  # noqa: E402
from demo_run import segmentation_plan as plan  # noqa: E402
from demo_run import segmentation_report as report  # noqa: E402
from demo_run.chains import SEEDS  # noqa: E402
from demo_run.steps import StepError  # noqa: E402

from .test_configs import NUCLEI, PATHS, PRETRAINING, read  # noqa: E402
from .tiny_configs import draw_picture, train, write_coco  # noqa: E402

NAME = re.compile(
    r'(?P<method>upernet|maskdino)_hivit-demo-itpn-pixel_tpn'
    r'_1xb(?P<batch>\d+)-(?P<length>\d+)(?P<unit>[ie])_nuclei'
)
TYPES = {
    ('upernet', 'i'): ('EncoderDecoder', 'UPerHead'),
    ('maskdino', 'i'): ('EncoderDecoder', 'itpn_mm.MaskDINODecodeHead'),
    ('maskdino', 'e'): ('itpn_mm.MaskDINO', 'itpn_mm.MaskDINOHead'),
}

# ----------------------------------------------------------------------------------------- configs


def test_each_model_has_a_config():
    found = {Path(study.find_config(model.config)).stem for model in plan.MODELS.values()}
    assert found == set(NUCLEI) and len(NUCLEI) == 3


@pytest.mark.parametrize('name', NUCLEI)
def test_name_says_what_it_holds(name):
    cfg, said = read(name), NAME.fullmatch(name)
    head = cfg.model.get('decode_head') or cfg.model.panoptic_head
    assert (cfg.model.type, head.type) == TYPES[said['method'], said['unit']]
    assert cfg.train_dataloader.batch_size == int(said['batch'])
    length, semantic = int(said['length']), said['unit'] == 'i'
    assert cfg.train_cfg['max_iters' if semantic else 'max_epochs'] == length
    cosine = cfg.param_scheduler[1]
    assert cosine.T_max == cosine.end == cfg.default_hooks.checkpoint.interval == length
    assert cosine.by_epoch == (not semantic)
    folder = 'data/demo/nuclei_semantic/' if semantic else 'data/demo/nuclei/'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == folder
    assert [PATHS[name].parent.name, cfg.default_scope] == (
        ['segmentation', 'mmseg'] if semantic else ['detection', 'mmdet']
    )
    assert cfg.optim_wrapper.constructor == 'itpn_mm.LayerDecayOptimWrapperConstructor'


@pytest.mark.parametrize('name', NUCLEI)
def test_model_starts_from_the_pretraining_of_the_demo(name):
    [pretraining] = [read(n) for n in PRETRAINING if 'demo' in n]
    model, epochs = read(name).model, pretraining.train_cfg.max_epochs
    for part in ('backbone', 'neck'):
        settings, expected = dict(model[part]), dict(pretraining.model[part])
        assert settings.pop('init_cfg') == dict(
            type='Pretrained',
            checkpoint=f'work_dirs/demo/pretrain/epoch_{epochs}.pth',
            prefix=f'{part}.',
        )
        for own in ('drop_path_rate', 'out_strides', 'concat_inputs', 'pool'):
            settings.pop(own, None), expected.pop(own, None)
        assert settings == expected


def test_classes_are_those_of_the_data():
    cfg = read(next(name for name in NUCLEI if name.startswith('upernet')))
    assert tuple(cfg.metainfo.classes) == nuclei_semantic.CLASSES == plan.CLASSES
    assert cfg.model.decode_head.num_classes == len(plan.CLASSES)


def use_tiny_data(cfg: Config, folder: Path) -> None:
    for key in ('train_dataloader', 'val_dataloader'):
        dataset = cfg[key].dataset
        prefix = dataset.data_prefix
        if cfg.default_scope == 'mmseg':
            for i in range(2):
                instances = np.zeros((128, 128), int)
                instances[20:60, 10:70], instances[60:100, 40 : 90 + i] = 1, 2
                name, labels = f'{i}.png', nuclei_semantic.class_map(instances)
                nuclei_semantic.save_labels(folder / prefix.seg_map_path / name, labels)
                (folder / prefix.img_path).mkdir(parents=True, exist_ok=True)
                draw_picture(128, 128, seed=i).save(folder / prefix.img_path / name)
        else:
            write_coco(folder / dataset.ann_file, folder / prefix.img, ('nucleus',))
            cfg.val_evaluator.ann_file = str(folder / dataset.ann_file)
        dataset.data_root = str(folder)
        cfg[key].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None


@pytest.mark.parametrize('name', NUCLEI)
def test_a_step_and_a_validation(name, tmp_path):
    """At its own width, for it is small."""
    cfg = read(name)
    for part in ('backbone', 'neck'):
        cfg.model[part].init_cfg = None
    use_tiny_data(cfg, tmp_path / 'data')
    semantic = 'max_iters' in cfg.train_cfg
    cfg.train_cfg.update({'max_iters' if semantic else 'max_epochs': 1, 'val_interval': 1})
    cfg.update(work_dir=str(tmp_path), experiment_name=f'{name}_step', log_level='ERROR')
    runner, gradients = train(cfg)
    assert runner.iter == 1 and all(value.isfinite() for value in gradients.values())
    assert set(gradients) == {n for n, p in runner.model.named_parameters() if p.requires_grad}
    metric = 'mIoU' if semantic else 'coco/segm_mAP'
    value = runner.message_hub.get_scalar(f'val/{metric}').current()
    assert 0 <= value <= (100 if semantic else 1)


# --------------------------------------------------------------------------------- plan and chains


def test_plan_compares_pairs_of_seeds():
    names = list(plan.costs(compare=True))
    assert len(names) == 3 * 2 * len(SEEDS) * 2
    assert 'maskdino-instance-scratch-seed2/evaluate' in names
    # The first seed is through before the second begins: an interrupted study still compares.
    assert [seed for *_, seed in plan.chains(True)] == sorted([*SEEDS] * 6)
    assert set(plan.chains(False)) == {(model, 'pretrained', 0) for model in plan.MODELS}


def chain(work, model='maskdino-semantic', start='pretrained', seed=1, **options):
    return study.Chain(model, start, seed, work, Path('pretrained.pth'), **options)


@pytest.mark.parametrize('model', plan.MODELS)
def test_config_of_a_chain_is_the_shipped_one(model, tmp_path):
    one, other, tiny = (
        chain(tmp_path, model, start, smoke=smoke)
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
    assert ours.train_cfg == shipped.train_cfg == scratch.train_cfg
    assert ours.randomness.seed == scratch.randomness.seed == 1
    semantic = plan.MODELS[model].semantic
    assert tiny.config().train_cfg['max_iters' if semantic else 'max_epochs'] <= 2
    assert ('max_epochs' in ours.train_cfg) != semantic
    assert len({one.key, other.key, tiny.key}) == 3


@pytest.mark.parametrize(
    'model', ['upernet', pytest.param('maskdino-instance', marks=pytest.mark.slow)]
)
def test_chain_trains_and_evaluates_once(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, 'INPUTS', ('LICENSE',))  # nobody edits that meanwhile
    monkeypatch.setattr(study, 'TRUTH', str(tmp_path / 'truth'))
    truth = np.array([[1, 1, 2, 3]], np.uint8)
    nuclei_semantic.save_labels(tmp_path / 'truth/a.png', truth)
    runs = []

    class Tester:
        def __init__(self, cfg):
            self.evaluator = cfg.test_evaluator

        def test(self):
            runs.append('test')
            if model == 'upernet':
                found = np.array([[1, 2, 2, 3]], np.uint8)
                nuclei_semantic.save_labels(Path(self.evaluator.output_dir) / 'a.png', found)
                return {'mIoU': 66.67}
            assert self.evaluator.outfile_prefix == str(tmp_path / model / 'pretrained/seed1/val')
            return dict.fromkeys(study.COCO_METRICS.values(), 0.25)

    def fake_train(cfg, folder, name):
        runs.append((name, folder.relative_to(tmp_path).as_posix()))
        return {'loss': 1.5}

    monkeypatch.setattr(study, 'train', fake_train)
    monkeypatch.setattr(study, 'make_tester', lambda cfg, *_: Tester(cfg))
    chain(tmp_path, model).run()
    said = capsys.readouterr().out.splitlines()
    name = f'{model}-pretrained-seed1'
    assert runs == [(f'{name}_train', f'{model}/pretrained/seed1/train'), 'test']
    values = {
        'upernet': 'mIoU 66.7, background 50.0, interior 50.0, border 100.0',
        'maskdino-instance': 'mask AP 25.0, mask AP50 25.0, box AP 25.0, box AP50 25.0',
    }
    assert f'task done: {name}/evaluate: {values[model]}' in said
    assert {f'{name}/{task}' for task in ('train', 'evaluate')} <= set(plan.costs(True))
    chain(tmp_path, model).run()
    assert len(runs) == 2 and capsys.readouterr().out.count(': complete') == 2
    chain(tmp_path, model, smoke=True).run()
    assert len(runs) == 4


# ------------------------------------------------------------------------------------- the command


def test_command_runs_what_is_planned(tmp_path, monkeypatch, capsys):
    seen = {}
    last = tmp_path / 'last_checkpoint'
    last.write_text('weights.pth')
    monkeypatch.setattr(demo_segmentation, 'prepare_study', lambda *args: seen.update(data=args))
    monkeypatch.setattr(demo_segmentation, 'last_checkpoint', lambda: last)

    def fake_parallel(commands, jobs, logs, progress):
        seen.update(commands=commands, jobs=jobs)
        assert set(progress.costs) == set(plan.costs(True))

    monkeypatch.setattr(demo_segmentation, 'run_parallel', fake_parallel)
    monkeypatch.setattr(report, 'write_report', lambda *args: seen.update(report=args) or 'table')
    old = tmp_path / 'work/upernet/pretrained'
    old.mkdir(parents=True)
    command = ['--compare', '--jobs', '2', '--work-dir', str(tmp_path / 'work')]
    assert demo_segmentation.main(command) == 0
    assert 'table' in capsys.readouterr().out and old.exists()
    assert seen['data'] == ('nuclei_semantic', False) and seen['jobs'] == 2
    assert len(seen['commands']) == 18
    words = seen['commands']['maskdino-instance-scratch-seed2'][1:]
    assert words[:4] == [
        'tools/demo_segmentation_chain.py',
        'maskdino-instance',
        'scratch',
        '2',
    ]
    assert words[-2:] == ['--pretrained', 'weights.pth']
    assert seen['report'] == (tmp_path / 'work', True)
    assert demo_segmentation.main([*command, '--fresh']) == 0 and not old.exists()

    def fail(*args):
        raise StepError('step broke')

    monkeypatch.setattr(demo_segmentation, 'prepare_study', fail)
    assert demo_segmentation.main(command) == 1
    assert capsys.readouterr().err == 'demo: step broke\n'
    with pytest.raises(SystemExit):
        demo_segmentation.main(['--jobs', '0'])


@pytest.mark.slow
def test_whole_demo(tmp_path):
    made_here = (Path(sys.prefix) / '.itpn_mm').is_dir()
    command = (
        ['bash', 'tools/demo.sh', 'segmentation']
        if made_here
        else [sys.executable, 'tools/demo_segmentation.py']
    )

    def run():
        return subprocess.run(
            [*command, '--smoke', '--work-dir', str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, 'ITPN_VENV': sys.prefix, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )

    first = run()
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert 'eta ' in first.stdout
    for picture in ('overlays', 'curves'):
        assert min(Image.open(tmp_path / f'{picture}.png').size) > 300
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert [row['model'] for row in summary['rows']] == list(plan.MODELS)
    again = run()
    assert again.returncode == 0 and again.stdout.count(': complete\n') == 2 * len(plan.MODELS)
