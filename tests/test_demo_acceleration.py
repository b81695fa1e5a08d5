"""The acceleration study: plan, configs, the strip, tasks, speed, table and plot; the whole."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('matplotlib')
coco_mask = pytest.importorskip('pycocotools.mask')
pytest.importorskip('mmdet')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_acceleration  # noqa: E402
from demo_data import nuclei  # noqa: E402
from demo_data.archives import ArchiveReader  # noqa: E402
from demo_run import acceleration as study  # noqa: E402
from demo_run import acceleration_plan as plan  # noqa: E402
from demo_run import acceleration_report as report  # noqa: E402
from demo_run import acceleration_speed as speed  # noqa: E402
from demo_run.acceleration_strip import write_strip  # noqa: E402
from demo_run.pictures import LINES  # noqa: E402
from demo_run.results import METRICS  # noqa: E402
from demo_run.tasks import Tasks, shorten  # noqa: E402

# ------------------------------------------------------------------------------------------- tasks


def test_task_runs_until_its_key_changes(tmp_path, capsys):
    runs = []

    def once(key):
        Tasks('dense-seed0', tmp_path, key).once('train', lambda: runs.append(key) or {'loss': 0.5})
        return capsys.readouterr().out.splitlines()

    done = 'task done: dense-seed0/train: '
    assert once('a') == ['task begins: dense-seed0/train', f'{done}loss 0.500']
    assert once('a') == [f'{done}complete']
    assert once('b')[-1] == f'{done}loss 0.500' and runs == ['a', 'b']
    content = json.loads((tmp_path / 'train.json').read_text())
    assert content['key'] == 'b' and content['result'] == {'loss': 0.5} and content['seconds'] >= 0


def test_values_are_shown_short():
    assert [shorten(value) for value in (97.43, 100.0, 0.3128)] == ['97.4', '100.0', '0.313']


# -------------------------------------------------------------------------------- plan and configs


def test_plan_trains_and_evaluates_each_setting():
    assert set(plan.TRAINED) <= set(plan.SETTING_NAMES) <= set(plan.SETTINGS)
    names = list(plan.costs())
    assert len(names) == len(plan.SEEDS) * (1 + 6 + 3 * 2)
    assert 'dense-seed0/evaluate-migration-20' in names and 'all-seed2/evaluate-all' in names
    assert 'migration-40-seed1/evaluate-dense' not in names
    # The first seed is through before the second begins: an interrupted study still compares.
    assert [seed for _, seed in plan.chains()] == sorted([*plan.SEEDS] * len(plan.TRAINED))


def chain(work, trained='dense', seed=1, smoke=False):
    return study.Chain(trained, seed, work, Path('pretrained.pth'), smoke)


def test_config_of_a_setting_keeps_the_demo(tmp_path):
    dense, both = (chain(tmp_path).config(name) for name in ('dense', 'all'))
    assert dense.model.backbone.type == 'itpn_mm.HiViT'
    assert dense.model.backbone.init_cfg.checkpoint == 'pretrained.pth'
    assert dense.model.neck.init_cfg.checkpoint == 'pretrained.pth'
    assert (dense.randomness.seed, dense.train_cfg.max_epochs) == (1, plan.EPOCHS)
    assert dense.param_scheduler[1].end == plan.EPOCHS
    wrapped = both.model.backbone
    assert wrapped.type == 'itpn_mm.TokenMigration' and wrapped.backbone == dense.model.backbone
    assert (wrapped.ratio, wrapped.gathering, wrapped.window_size) == (0.2, True, 4)
    both.model.backbone = dense.model.backbone
    assert both.to_dict() == dense.to_dict()


def test_strip_is_tested_at_its_size(tmp_path):
    cfg = chain(tmp_path).config('dense', 'strip')
    dataset = cfg.test_dataloader.dataset
    assert dataset.ann_file == 'strip.json' and cfg.test_evaluator.ann_file.endswith('/strip.json')
    [resize] = [step for step in dataset.pipeline if step.type == 'Resize']
    # The longer side sets the scale, so that nothing is resized.
    assert resize.keep_ratio and min(resize.scale) == 512
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/val.json'


@pytest.mark.parametrize('name', plan.SETTING_NAMES)
def test_tokens_of_a_tile(name, tmp_path):
    from mmengine.registry import init_default_scope

    from itpn_mm.registry import MODELS

    init_default_scope('mmdet')
    cfg = chain(tmp_path, smoke=True).config(name)
    backbone = MODELS.build(cfg.model.backbone)
    lengths = {'migration-20': [60, 56, 56, 52], 'migration-40': [56, 52, 44, 40]}
    lengths['all'] = lengths['migration-20']
    if name == 'dense':
        assert backbone.acceleration is None
    else:
        assert backbone.acceleration.tokens_per_layer(8, 8) == lengths.get(name, [64] * 4)


# ------------------------------------------------------------------------------------------- strip


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    """A picture as large as the real one, with squares across the borders of tiles."""
    folder = tmp_path_factory.mktemp('wheel')
    labels = np.zeros((512, 512), np.uint16)
    for number, top in enumerate(range(16, 500, 56), start=1):
        for part, left in enumerate((20, 150, 376, 430)):
            labels[top : top + 24, left : left + 24] = 10 * number + part
    with zipfile.ZipFile(folder / 'wheel.whl', 'w') as file:
        for member, array in ((nuclei.PICTURE, 120 * (labels > 0)), (nuclei.LABELS, labels)):
            Image.fromarray(array.astype(np.uint16)).save(folder / 'picture.png')
            file.write(folder / 'picture.png', member)
    return ArchiveReader({nuclei.PACKAGE: folder / 'wheel.whl'})


def test_strip_is_the_tiles_in_one(reader, tmp_path):
    nuclei.build(tmp_path / 'nuclei', reader)
    write_strip(tmp_path / 'strip', reader)
    strip = np.asarray(Image.open(tmp_path / 'strip/strip.png'))
    tiles = [np.asarray(Image.open(p)) for p in sorted((tmp_path / 'nuclei/val').iterdir())]
    assert strip.shape == (512, 128, 3) and np.array_equal(strip, np.concatenate(tiles))

    documents = [
        json.loads((tmp_path / path).read_text())
        for path in ('strip/strip.json', 'nuclei/annotations/val.json')
    ]
    [image] = documents[0]['images']
    assert (image['file_name'], image['width'], image['height']) == ('strip.png', 128, 512)
    areas = []
    for document in documents:
        areas.append({})
        for item in document['annotations']:
            rle = coco_mask.frPyObjects(item['segmentation'], *item['segmentation']['size'])
            assert coco_mask.area(rle) == item['area']
            label = item['instance']
            areas[-1][label] = areas[-1].get(label, 0) + item['area']
    assert areas[0] == areas[1]  # nothing is lost where tiles meet
    whole, cut = (len(document['annotations']) for document in documents)
    assert whole == len(areas[0]) < cut


@pytest.mark.slow
def test_chain_trains_and_evaluates(reader, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, 'INPUTS', ('LICENSE',))  # nobody edits that meanwhile
    monkeypatch.chdir(tmp_path)
    nuclei.build(tmp_path / 'data/demo/nuclei', reader)
    work = tmp_path / 'work'
    write_strip(work / 'strip', reader)

    def run():
        chain(work, 'all', smoke=True).run()
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith('task done: ')]

    first, second = run()
    assert first.startswith('task done: all-seed1/train: loss ')
    assert second.startswith('task done: all-seed1/evaluate-all: tiles_bbox_mAP ')
    result = json.loads((work / 'all/seed1/evaluate-all.json').read_text())['result']
    assert set(result) == {f'{part}_{metric}' for part in plan.PARTS for metric in METRICS}
    assert all(0 <= value <= 100 for value in result.values())
    assert [line.rpartition(': ')[2] for line in run()] == ['complete'] * 2

    # The checkpoint has what the setting added, and what is tested has what was trained.
    path = (work / 'all/seed1/train/last_checkpoint').read_text()
    state = torch.load(path, weights_only=False)['state_dict']
    assert any(key.startswith('backbone.acceleration.') for key in state)
    runner = chain(work, 'all', smoke=True).tester('all', 'strip')
    runner.test()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, state[name]), name


# ------------------------------------------------------------------------------------------- speed


def test_settings_take_turns():
    order = []
    groups = {
        group: {name: (lambda said=group + name: order.append(said)) for name in 'ab'}
        for group in 'xy'
    }
    seconds = speed.take_turns(groups, 3)
    assert order == ['xa', 'xb', 'ya', 'yb'] * 3
    assert {len(v) for names in seconds.values() for v in names.values()} == {3}


@pytest.fixture
def timed():
    """Four tiles and a strip; every setting but the dense one is a quarter faster."""
    passes = {s: [0.4] * 2 + [4.0] if s == 'dense' else [0.3] * 2 + [3.0] for s in plan.SETTINGS}
    return {
        part: {'images': images, 'detector': passes, 'backbone': passes}
        for part, images in (('tiles', 4), ('strip', 1))
    }


def test_speed_is_a_median_and_a_ratio_within_a_round(timed):
    found = speed.summarise(timed, 'tiles', 'windows')
    assert found['images_per_second'] == pytest.approx(13.33) and found['backbone_ms'] == 75
    assert found['speedup'] == found['backbone_speedup'] == pytest.approx(1.333)
    assert speed.summarise(timed, 'strip', 'dense')['speedup'] == 1
    assert speed.median_ratio([1.0, 12.0, 4.0], [1.0, 3.0, 2.0]) == 2


# ------------------------------------------------------------------------------------------ report


@pytest.fixture
def tasks():
    """Dense AP of 50, 52 and 57; a setting costs 1, 2, ... and half of it if trained with it."""
    files = {}
    for trained, seed in plan.chains():
        for task in plan.tasks_of(trained):
            kind, _, setting = task.partition('-')
            cost = plan.SETTING_NAMES.index(setting or 'dense') * (1 if trained == 'dense' else 0.5)
            value = (50.0, 52.0, 57.0)[seed] - cost
            keys = [f'{part}_{metric}' for part in plan.PARTS for metric in METRICS]
            result = {'loss': 0.5} if kind == 'train' else dict.fromkeys(keys, value)
            name = f'{plan.chain_name(trained, seed)}/{task}'
            files[name] = {'key': '', 'seconds': 2.0, 'result': result}
    return files


@pytest.fixture
def summary(tasks, timed):
    counts = {part: {'images': 4, 'instances': 29} for part in plan.PARTS}
    return json.loads(json.dumps(report.summarise(tasks, timed, counts, plan.SEEDS)))


def test_files_of_tasks_are_read(tasks, tmp_path):
    assert report.path_of('migration-40-seed1/train') == 'migration-40/seed1/train.json'
    for name, content in tasks.items():
        path = tmp_path / report.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert report.read_tasks(tmp_path, plan.SEEDS) == tasks
    path.unlink()
    with pytest.raises(FileNotFoundError):
        report.read_tasks(tmp_path, plan.SEEDS)
    assert set(report.read_tasks(tmp_path, [0])) < set(tasks)


def test_summary_pairs_seeds(summary):
    rows = {(r['part'], r['trained'], r['evaluated']): r for r in summary['rows']}
    assert len(rows) == len(plan.PARTS) * 9
    row = rows['tiles', 'dense', 'windows']
    assert row['segm_mAP'] == {'values': [47.0, 49.0, 54.0], 'mean': 50.0, 'std': 3.61}
    assert row['segm_mAP_minus_dense'] == {'values': [-3.0] * 3, 'mean': -3.0, 'std': 0.0}
    assert rows['strip', 'windows', 'windows']['bbox_mAP_minus_dense']['mean'] == -1.5
    assert summary['machine']['cores'] >= 1 and summary['seeds'] == list(plan.SEEDS)


def test_table(summary):
    table = report.make_table(summary)
    for row in (
        '| dense | dense | 53.0 ± 3.6 | 53.0 ± 3.6 |  | 10.0 | 1.00x | 1.00x |',
        '| dense | windows | 50.0 ± 3.6 | 50.0 ± 3.6 | -3.0 ± 0.0 | 13.3 | 1.33x | 1.33x |',
        '| windows | windows | 51.5 ± 3.6 | 51.5 ± 3.6 | -1.5 ± 0.0 | 13.3 | 1.33x | 1.33x |',
    ):
        assert table.count(row) == 1  # tiles; the strip has other images/s
    assert '29 nuclei' in table and 'One nucleus of 29 is 3.4 %' in table
    assert (
        f'Mean ± standard deviation of 3 seeds, {plan.EPOCHS} epochs' in table
        and 'nothing to gain in speed' in table
    )
    summary['rows'][0]['evaluated'] = 'windows'
    summary['rows'][0]['segm_mAP_minus_dense']['mean'] = -0.04
    assert '| +0.0 ± 0.0 |' in report.make_table(summary)  # not -0.0


def test_table_of_one_seed(tasks, timed):
    tasks = {name: tasks[name] for name in plan.costs([1])}
    counts = {part: {'images': 4, 'instances': 29} for part in plan.PARTS}
    table = report.make_table(report.summarise(tasks, timed, counts, [1]))
    assert '| windows | windows | 50.5 | 50.5 | -1.5 | 13.3 |' in table
    assert f'One seed, {plan.EPOCHS} epochs each' in table


def test_plot_shows_both_ways_of_training(summary, tmp_path):
    path = tmp_path / 'plot.png'
    report.draw(summary, path)
    image = np.asarray(Image.open(path).convert('RGB')).astype(int)
    height, width = image.shape[0] // 2, image.shape[1] // 3

    def pixels(colour, row, column, share=1.0):
        """Of a colour, in the left part of a panel."""
        wanted = [int(colour[j : j + 2], 16) for j in (1, 3, 5)]
        part = image[row * height :, column * width :][:height, : int(share * width)]
        return (np.abs(part - wanted).max(axis=2) < 12).sum()

    for row in range(2):
        for i, colour in enumerate(LINES[:4]):
            for column in (0, 1) if i < 2 else (2,):
                assert pixels(colour, row, column) > 50
        assert pixels(LINES[0], row, 0, 0.25) > 20  # dense
        assert pixels(LINES[1], row, 0, 0.25) == 0  # is trained in one way only


# ------------------------------------------------------------------------------------- the command


def test_command_runs_what_is_planned(tmp_path, monkeypatch, capsys):
    seen = {}
    last = tmp_path / 'last_checkpoint'
    last.write_text('weights.pth')
    monkeypatch.setattr(demo_acceleration, 'prepare_study', lambda *args: seen.update(data=args))
    monkeypatch.setattr(demo_acceleration, 'prepare', lambda work: seen.update(strip=work))
    monkeypatch.setattr(demo_acceleration, 'last_checkpoint', lambda: last)
    monkeypatch.setattr(demo_acceleration, 'run_parallel', lambda *args: seen.update(run=args))
    monkeypatch.setattr(
        demo_acceleration, 'report', lambda *args: seen.update(report=args) or 'table'
    )
    work = tmp_path / 'work'
    old = work / 'dense/seed0'
    old.mkdir(parents=True)
    command = ['--seeds', '1', '--jobs', '2', '--work-dir', str(work)]
    assert demo_acceleration.main(command) == 0 and 'table' in capsys.readouterr().out
    commands, jobs, logs, progress = seen['run']
    assert list(commands) == [f'{trained}-seed0' for trained in plan.TRAINED]
    words = commands['windows-seed0'][1:]
    assert words[:3] == ['tools/demo_acceleration_chain.py', 'windows', '0']
    assert words[-2:] == ['--pretrained', 'weights.pth'] and jobs == 2
    assert logs == work / 'logs' and set(progress.costs) == set(plan.costs([0]))
    assert seen['data'] == ('nuclei', False) and seen['strip'] == work
    assert seen['report'] == (work, (0,), False) and old.exists()
    assert demo_acceleration.main([*command, '--fresh']) == 0 and not old.exists()


def test_wrong_argument_is_told():
    for arguments in (['--jobs', '0'], ['--seeds', '0'], ['--compare']):
        with pytest.raises(SystemExit):
            demo_acceleration.main(arguments)


@pytest.mark.slow
def test_whole_study(tmp_path):
    command = [sys.executable, 'tools/demo_acceleration.py', '--smoke', '--work-dir', str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert 'eta ' in first.stdout and '| migration-40 | migration-40 |' in first.stdout
    assert min(Image.open(tmp_path / 'acceleration.png').size) > 300
    assert len(json.loads((tmp_path / 'results.json').read_text())['rows']) == 2 * 9
    for part in plan.PARTS:  # new parameters of gathering change nothing yet
        rows = [
            json.loads((tmp_path / f'dense/seed0/evaluate-{setting}.json').read_text())['result']
            for setting in ('windows', 'gathering')
        ]
        assert rows[0][f'{part}_bbox_mAP'] == rows[1][f'{part}_bbox_mAP']
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count(': complete\n') == len(plan.costs())
