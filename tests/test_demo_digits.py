"""The digits demo: data, configs, k-NN, tasks side by side, table and plot."""

import csv
import difflib
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('matplotlib')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_digits  # noqa: E402
from demo_data import archives, digits  # noqa: E402
from demo_data.archives import ArchiveError, ArchiveReader  # noqa: E402
from demo_run import digits_plan, digits_report, knn, values  # noqa: E402
from demo_run.parallel import BEGIN, DONE, Progress, run_parallel  # noqa: E402
from demo_run.steps import StepError  # noqa: E402

ROWS = 1797


def write_archive(folder, table):
    """A wheel with a table of digits; its reader."""
    text = io.StringIO()
    csv.writer(text).writerows(table)
    path = folder / 'wheel.whl'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(digits.TABLE, gzip.compress(text.getvalue().encode()))
    return ArchiveReader({digits.PACKAGE: path})


def made_table():
    """As many rows as the real one; the picture of a digit has its class as its grey."""
    labels = np.arange(ROWS) % 10
    return np.column_stack([np.repeat(labels[:, None], 64, axis=1), labels])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The data set of such a table."""
    folder = tmp_path_factory.mktemp('made')
    counts, _ = digits.build(folder, write_archive(folder, made_table()))
    return folder, counts


def rows_of(path):
    return [line.split() for line in path.read_text().splitlines()]


# -------------------------------------------------------------------------------------------- data


def test_digits_lie_in_folders_of_their_classes(made):
    folder, counts = made
    for split in ('train', 'test'):
        paths = sorted((folder / split).rglob('*.png'))
        assert len(paths) == counts[f'{split}_images']
        assert {path.parent.name for path in paths} == set(digits.CLASSES)
        for path in paths[::50]:
            grey = np.asarray(Image.open(path))
            assert grey.shape == (64, 64)
            assert (grey == round(int(path.parent.name) * 255 / 16)).all()
    assert counts['train_images'] + counts['test_images'] == ROWS


def test_whole_forms_are_held_out(made):
    folder, _ = made
    rows = {}
    for split in ('train', 'test'):
        names = [path.stem for path in (folder / split).rglob('*.png')]
        assert {int(name[4:6]) in digits.TEST_FORMS for name in names} == {split == 'test'}
        rows[split] = {int(name[7:]) for name in names}
    assert rows['test'] == set(range(digits.FORMS[min(digits.TEST_FORMS)], ROWS))
    assert rows['train'] | rows['test'] == set(range(ROWS))


def test_lists_of_few_labels(made):
    meta = made[0] / 'meta'
    train, test = rows_of(meta / 'train.txt'), rows_of(meta / 'test.txt')
    for folder, rows in (('train', train), ('test', test)):
        assert all((made[0] / folder / name).is_file() for name, _ in rows)
        assert all(Path(name).parent.name == label for name, label in rows)
    for number in digits.FEW:
        lists = [rows_of(meta / f'{digits.few_name(number, seed)}.txt') for seed in digits.SEEDS]
        for rows in lists:
            assert sorted(label for _, label in rows) == sorted(digits.CLASSES * number)
            assert {tuple(row) for row in rows} <= {tuple(row) for row in train}
        assert lists[0] != lists[1] != lists[2]


def test_few_labels_are_the_same_every_time(made):
    lines = [' '.join(row) for row in rows_of(made[0] / 'meta/train.txt')]
    again = digits.draw_few(lines, digits.FEW[0], 1)
    assert again == digits.draw_few(lines, digits.FEW[0], 1) != digits.draw_few(lines, 5, 1)


def test_enlarging_keeps_the_picture():
    picture = np.zeros((8, 8), np.uint8)
    picture[2:6, 1:4] = 16
    large = digits.enlarge(picture)
    assert large[28:36, 14:26].min() > 240 and large[:, 44:].max() < 15


@pytest.mark.parametrize('table', [made_table()[:100], made_table()[:, 1:]])
def test_another_table_is_refused(tmp_path, table):
    with pytest.raises(ArchiveError, match=r'must have 65 columns and more than 1667 rows, got \('):
        digits.read_digits(write_archive(tmp_path, table))


def test_real_forms_begin_where_the_split_says():
    archive = archives.ARCHIVES[digits.PACKAGE]
    path = ROOT / 'data' / '.archives' / archive.filename
    if not path.exists():
        pytest.skip('the archive was not fetched; tools/prepare_demo_data.py does')
    _, labels = digits.read_digits(ArchiveReader({digits.PACKAGE: path}))
    text = ''.join(map(str, labels))
    assert len(text) == ROWS
    first = text[: digits.FORMS[1]]
    for begin, end in zip(digits.FORMS, (*digits.FORMS[1:], ROWS)):
        form = text[begin:end]
        # The same digits in the same order, but for a few.
        assert difflib.SequenceMatcher(None, first, form, autojunk=False).ratio() > 0.95
        assert 120 <= len(form) <= 130 and form.lstrip('0').startswith('123456789')


# -------------------------------------------------------------------------------------------- k-NN


def neighbours_by_hand(query, features, labels, k):
    cosine = [float(np.dot(query, f) / np.linalg.norm(query) / np.linalg.norm(f)) for f in features]
    votes = {}
    for i in sorted(range(len(features)), key=lambda i: -cosine[i])[:k]:
        votes[labels[i]] = votes.get(labels[i], 0) + (cosine[i] + 1) / 2
    return max(votes, key=votes.get)


@pytest.mark.parametrize('k', [1, 5, 20])
def test_knn_is_what_a_loop_finds(k):
    rng = np.random.default_rng(k)
    features, labels = rng.normal(size=(60, 7)), rng.integers(0, 6, 60)
    queries = rng.normal(size=(40, 7))
    expected = [neighbours_by_hand(query, features, labels.tolist(), k) for query in queries]
    found = knn.classify(*map(torch.from_numpy, (queries, features, labels)), k)
    assert found.tolist() == expected


def test_knn_ignores_length_and_counts_votes():
    features = torch.tensor([[1.0, 0.0], [0.0, 9.0], [0.1, 9.0], [0.2, 9.0]])
    labels = torch.tensor([3, 0, 1, 1])
    assert knn.classify(torch.tensor([[50.0, 1.0]]), features, labels, 1).tolist() == [3]
    assert knn.classify(torch.tensor([[0.0, 0.1]]), features, labels, 3).tolist() == [1]
    assert knn.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 0])) == 50


# ----------------------------------------------------------------------------------------- configs


def test_configs_say_what_they_hold():
    config = pytest.importorskip('mmengine.config').Config
    pytest.importorskip('mmpretrain')
    names = {path.name for path in (ROOT / 'configs/demo').glob('*.py')}
    assert names == {Path(path).name for path in digits_plan.CONFIGS.values()}
    loaded = {kind: config.fromfile(ROOT / path) for kind, path in digits_plan.CONFIGS.items()}
    for kind, cfg in loaded.items():
        name = Path(digits_plan.CONFIGS[kind]).stem
        batch, iters, data = re.search(r'_1xb(\d+)-.*?(\d+)i_(\w+)-64px$', name).groups()
        assert cfg.train_cfg.max_iters == int(iters)
        assert cfg.train_dataloader.batch_size == int(batch)
        assert cfg.train_dataloader.dataset.data_root == f'data/demo/{data}'
        warm_up, cosine = cfg.param_scheduler
        assert warm_up.end == cosine.begin and cosine.end == int(iters)
        assert cosine.T_max == cosine.end - cosine.begin
        assert cfg.model.backbone.arch == loaded['digits'].model.backbone.arch
    for kind in ('linear', 'finetune'):
        checkpoint = loaded[kind].model.backbone.init_cfg.checkpoint
        pretrained = loaded['photographs'].train_cfg.max_iters
        assert checkpoint.endswith(f'/photographs/pretrain/iter_{pretrained}.pth')
        assert f'-pixel-{pretrained}i-pre_' in digits_plan.CONFIGS[kind]
        assert loaded[kind].train_dataloader.dataset.ann_file == 'meta/train.txt'
        assert loaded[kind].test_dataloader.dataset.ann_file == 'meta/test.txt'
    assert loaded['linear'].model.backbone.frozen_stages == 3
    assert '-linear-' in digits_plan.CONFIGS['linear']


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A working folder with data/demo, as the configs name it."""
    data = tmp_path / 'data/demo/digits'
    shutil.copytree(made[0] / 'meta', data / 'meta')
    for split in ('train', 'test'):
        (data / split).symlink_to(made[0] / split)
    lists = {path.stem: path.read_text().splitlines() for path in (data / 'meta').iterdir()}
    labelled = {line for name, lines in lists.items() if 'per-class' in name for line in lines}
    (data / 'meta/train.txt').write_text('\n'.join(sorted(labelled)))
    (data / 'meta/test.txt').write_text('\n'.join(lists['test'][:30]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('start', ['scratch', 'digits'])
def test_chain_runs_every_task_once(start, place, capsys, monkeypatch):
    pytest.importorskip('mmpretrain')
    from demo_run import digits as tasks_module
    from demo_run.digits import Chain

    monkeypatch.setattr(tasks_module, 'INPUTS', ('LICENSE',))  # nobody edits that meanwhile

    work, parts = place / 'work', [part for name, part in digits_plan.chains() if name == start]
    parts = [part for part in parts if part in ('pretrain', 'seed1')]

    def run():
        for part in parts:
            Chain(start, part, work, smoke=True).run()
        lines = capsys.readouterr().out.splitlines()
        return [line.removeprefix(DONE) for line in lines if line.startswith(DONE)]

    names = [f'{start}-{part}/{task}' for part in parts for task in digits_plan.tasks_of(part)]
    assert [line.partition(': ')[0] for line in run()] == names
    for name in names:
        result = json.loads((work / digits_report.path_of(name)).read_text())['result']
        if name.endswith('pretrain'):
            assert np.isfinite(result['loss'])
            continue
        number = name.partition('/')[2].partition('-')[2]
        assert set(result) == ({number} if number else set(digits_plan.LABELS))
        assert all(0 <= value <= 100 for value in result.values())
        # Every picture of a class is the same, so the nearest neighbour is right.
        assert number or start != 'scratch' or result['all'] == 100
    assert run() == [f'{name}: complete' for name in names]


def test_linear_probe_trains_the_head_alone(place):
    pytest.importorskip('mmpretrain')
    from demo_run.digits import Chain

    for kind, frozen in (('linear', True), ('finetune', False)):
        chain = Chain('scratch', 'seed0', place / kind, smoke=True)
        runner = chain.make_runner(kind, digits_plan.CONFIGS[kind])
        runner.model.init_weights()
        before = {name: value.clone() for name, value in runner.model.state_dict().items()}
        runner.train()
        moved = {
            name.partition('.')[0]
            for name, value in runner.model.state_dict().items()
            if not torch.equal(value, before[name])
        }
        assert 'head' in moved and ('backbone' not in moved) == frozen


def test_pretrained_weights_arrive(place):
    pytest.importorskip('mmpretrain')
    from demo_run.digits import Chain

    Chain('digits', 'pretrain', place / 'work', smoke=True).run()
    chain = Chain('digits', 'seed2', place / 'work', smoke=True)
    [path] = (place / 'work').rglob('iter_*.pth')
    state = torch.load(path, weights_only=False)['state_dict']
    runner = chain.make_runner('knn', digits_plan.CONFIGS['linear'])
    runner.model.init_weights()
    for name, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{name}']), name


# --------------------------------------------------------------------------------- tasks and report


def say(*lines):
    return [sys.executable, '-c', f'print({chr(10).join(lines)!r})']


def test_progress_counts_tasks_and_time(tmp_path, capsys):
    costs = {'a/x': 1.0, 'a/y': 1.0, 'b/x': 2.0}
    commands = {
        'a': say(f'{DONE}a/x: all 90.0', 'something else', f'{DONE}a/y: complete'),
        'b': say(f'{DONE}b/x: all 80.0'),
    }
    run_parallel(commands, 1, tmp_path, Progress(costs))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition('] ')[2] for line in lines] == [
        'a/x: all 90.0',
        'a/y: complete',
        'b/x: all 80.0',
    ]
    assert '[ 3/3 ' in lines[-1] and 'eta 0:00:00' in lines[-1]
    assert 'something else' in (tmp_path / 'a.log').read_text()


def test_time_left_is_in_proportion(monkeypatch, capsys):
    progress = Progress({'a/x': 1.0, 'a/y': 3.0, 'a/z': 6.0})
    assert progress.left() is None
    progress.finish('a/x', 'complete')  # before this run: says nothing about the speed
    assert progress.left() is None
    progress.finish('a/y', 'all 1.0')
    monkeypatch.setattr('time.monotonic', lambda: progress.start + 30)
    assert progress.left() == pytest.approx(60)
    progress.line('a', f'{BEGIN}a/z\n')
    progress.line('a', 'INFO - Iter(train) [ 50/100]  eta: 0:00:30  loss: 0.1')
    assert progress.left() == pytest.approx(15)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == '   [ 2/3  0:00:30  eta 0:00:15] a/z 50/100'


def test_failed_command_names_its_log(tmp_path):
    commands = {
        'bad': [sys.executable, '-c', 'raise SystemExit("no such thing")'],
        'next': say('never'),
    }
    with pytest.raises(
        StepError, match=r'bad failed \(exit status 1\); log: .*bad\.log\n.*no such'
    ):
        run_parallel(commands, 1, tmp_path, Progress({}))
    assert not (tmp_path / 'next.log').exists()


def test_failure_ends_what_runs_beside_it(tmp_path):
    slow = [sys.executable, '-c', 'import time; print("on", flush=True); time.sleep(60)']
    bad = [sys.executable, '-c', 'import time; time.sleep(1); raise SystemExit(3)']
    start = time.monotonic()
    with pytest.raises(StepError, match=r'bad failed \(exit status 3\)'):
        run_parallel({'slow': slow, 'bad': bad}, 2, tmp_path, Progress({}))
    assert time.monotonic() - start < 30
    assert (tmp_path / 'slow.log').read_text() == 'on\n'


@pytest.fixture
def found():
    """Accuracies that rise with the labels; the second start is better by 10."""
    return {
        method: {
            start: {
                number: [50 + 10 * i + 10 * j + k for k in (0, 1, 2)]
                for j, number in enumerate(digits_plan.LABELS)
            }
            for i, start in enumerate(digits_plan.STARTS)
        }
        for method in digits_plan.METHODS
    }


@pytest.fixture
def tasks(found):
    """Files of tasks that say so."""
    files = {}
    for name in digits_plan.costs():
        chain, task = name.split('/')
        start, part = chain.split('-')
        kind, _, number = task.partition('-')
        if kind == 'pretrain':
            result = {'loss': 0.5}
        else:
            numbers = [number] if number else digits_plan.LABELS
            result = {n: found[kind][start][n][int(part[-1])] for n in numbers}
        files[name] = {'key': '', 'seconds': 2.0, 'result': result}
    return files


def test_results_are_collected_by_method_start_and_labels(tasks, found, tmp_path):
    assert digits_report.collect(tasks) == found
    for name, content in tasks.items():
        path = tmp_path / digits_report.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert digits_report.read_tasks(tmp_path, digits_plan.SEEDS) == tasks
    path.unlink()
    with pytest.raises(FileNotFoundError):
        digits_report.read_tasks(tmp_path, digits_plan.SEEDS)
    assert set(digits_report.read_tasks(tmp_path, [0])) < set(tasks)


def test_mean_and_sample_deviation():
    assert values.mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert values.mean_and_deviation([4.0]) == (4.0, 0.0)
    cell = values.describe([1.0, 2.0, 3.0])
    assert values.figure(cell) == '2.0 ± 1.0' and values.figure(cell, '+') == '+2.0 ± 1.0'
    assert values.figure(values.describe([-0.04]), '+') == '+0.0'
    assert values.spread_of([0]) == 'one seed' and values.spread_of([0, 1]).endswith('of 2 seeds')


def test_table(tasks, found):
    found['knn'][digits_report.PIXELS] = {n: [90.0, 91.0, 92.0] for n in digits_plan.LABELS}
    counts = {'train_images': 1415, 'test_images': 382}
    seeds = digits_plan.SEEDS
    summary = json.loads(json.dumps(digits_report.summarise(found, tasks, counts, seeds)))
    table = digits_report.make_table(summary)
    assert 'all labels (1415)' in table and '382 images' in table and 'One image is 0.26' in table
    scratch = '| random weights | 51.0 ± 1.0 | 61.0 ± 1.0 | 71.0 ± 1.0 |'
    assert table.count(scratch) == len(digits_plan.METHODS)
    assert table.count('none: the pixels themselves | 91.0 ± 1.0') == 1
    assert summary['pretrain_loss']['digits'] == 0.5
    assert summary['machine']['cores'] >= 1


def test_table_of_one_seed(tasks):
    tasks = {name: tasks[name] for name in digits_plan.costs([0])}
    found = digits_report.collect(tasks)
    counts = {'train_images': 1415, 'test_images': 382}
    table = digits_report.make_table(digits_report.summarise(found, tasks, counts, [0]))
    assert '| random weights | 50.0 | 60.0 | 70.0 |' in table and '; one seed, after' in table


def test_plot_shows_every_start(found, tmp_path):
    from demo_run.pictures import LINES

    path = tmp_path / 'digits.png'
    digits_report.draw(found, path)
    image = np.asarray(Image.open(path).convert('RGB')).astype(int)
    assert image.shape[1] > 1000
    third = image.shape[1] // 3
    for i in range(len(digits_plan.STARTS)):
        wanted = [int(LINES[i][j : j + 2], 16) for j in (1, 3, 5)]
        for panel in range(3):
            part = image[:, panel * third : (panel + 1) * third]
            assert (np.abs(part - wanted).max(axis=2) < 12).sum() > 50


def test_pixels_of_made_digits_are_told_apart(made):
    # One grey a class: the cosine cannot see it, but the darkest is all zero.
    images, labels = digits_report.read_images(made[0], 'test', 'meta/test.txt')
    assert images.shape == (len(labels), 64 * 64) and float(images.max()) <= 1
    found = digits_report.classify_pixels(made[0], [0, 2])
    numbers = {number: len(accuracies) for number, accuracies in found.items()}
    assert numbers == dict.fromkeys(digits_plan.LABELS, 2)


# ------------------------------------------------------------------------------------- the command


def test_chains_that_need_a_pretraining_come_second(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(demo_digits.Steps, 'run_always', lambda *_: 0.0)
    monkeypatch.setattr(demo_digits, 'run_parallel', lambda *args: runs.append(args))
    demo_digits.run(tmp_path, [0], 2, smoke=True)
    (first, jobs, logs, progress), (second, *_) = runs
    assert list(first) == ['photographs-pretrain', 'digits-pretrain', 'scratch-seed0']
    assert list(second) == ['photographs-seed0', 'digits-seed0'] and jobs == 2
    assert first['digits-pretrain'][1:] == [
        'tools/demo_digits_chain.py', 'digits', 'pretrain', '--work-dir', str(tmp_path), '--smoke',
    ]  # fmt: skip
    assert logs == tmp_path / 'logs' and set(progress.costs) == set(digits_plan.costs([0]))


def test_wrong_argument_is_told():
    for arguments in (['--jobs', '0'], ['--seeds', '4'], ['--compare']):
        with pytest.raises(SystemExit):
            demo_digits.main(arguments)


@pytest.mark.slow
def test_whole_demo(tmp_path):
    pytest.importorskip('mmpretrain')
    command = [sys.executable, 'tools/demo_digits.py', '--smoke', '--work-dir', str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert 'eta ' in first.stdout and '| fine-tuning | random weights |' in first.stdout
    assert min(Image.open(tmp_path / 'digits.png').size) > 300
    rows = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert len(rows) == 3 * (3 * 3 + 1)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count(': complete\n') == len(digits_plan.costs())
