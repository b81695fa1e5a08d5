"""tools/demo.sh all: its plan, the schedule, failures, the command; the whole in a smoke run."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip('matplotlib')
pytest.importorskip('pycocotools.mask')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import demo_all  # noqa: E402
import demo_html  # noqa: E402
import demo_nuclei_chain  # noqa: E402
from demo_run import nuclei_plan, parallel  # noqa: E402
from demo_run.command import STATUS, write_status  # noqa: E402
from demo_run.page_sections import SECTIONS  # noqa: E402
from demo_run.parallel import BEGIN, DONE, Progress  # noqa: E402
from demo_run.schedule import Job, PartProgress, in_order, run_jobs, task_name  # noqa: E402
from demo_run.steps import StepError  # noqa: E402

BUDGET = 45 * 60  # seconds on two cores, after set-up


# --------------------------------------------------------------------------------------- the plan


@pytest.fixture
def parts(tmp_path):
    return demo_all.all_parts(tmp_path, smoke=False)


def test_every_task_is_of_one_chain(parts, tmp_path):
    jobs = demo_all.make_jobs(parts, tmp_path, smoke=False)
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))  # what waits for one knows it by its name
    costs = demo_all.make_costs(parts)
    reports = {name for name in costs if name.endswith(f' {demo_all.REPORT}')}
    assert len(reports) == len(parts) - 1  # that of nuclei is a task of its chain
    chained = sum(cost for name, cost in costs.items() if name not in reports)
    assert sum(job.cost for job in jobs) == pytest.approx(chained)
    assert all(job.cost > 0 for job in jobs)
    assert list(parts) == list(SECTIONS)
    for name, part in parts.items():
        assert part.folder == tmp_path / SECTIONS[name].folder


def makespan(jobs, cores):
    """Seconds that all jobs take, if each takes what it costs."""
    left, running, done, now = in_order(jobs), [], set(), 0.0
    while left or running:
        for job in list(left):
            if len(running) < cores and done.issuperset(job.after):
                left.remove(job)
                running.append((now + job.cost, job))
        end, job = min(running, key=lambda pair: pair[0])
        running.remove((end, job))
        done.add(job.name)
        now = end
    return now


def test_all_fits_into_its_time_on_two_cores(parts, tmp_path):
    jobs = demo_all.make_jobs(parts, tmp_path, smoke=False)
    alone = sum(job.cost for job in jobs)
    expected = makespan(jobs, cores=2)
    assert makespan(jobs, cores=1) == pytest.approx(alone)
    assert expected < 1.05 * alone / 2  # both cores are busy to the end
    reports = sum(part.report_seconds for part in parts.values() if part.report)
    assert expected + reports < BUDGET - 3 * 60  # data, and machines that are a little slower


def test_what_needs_the_pretraining_waits_for_it(parts, tmp_path):
    jobs = {job.name: job for job in demo_all.make_jobs(parts, tmp_path, smoke=False)}
    assert jobs['nuclei'].after == jobs['dense-seed0'].after == ('pretraining',)
    assert jobs['digits-seed0'].after == ('digits-pretrain',)
    assert jobs['pretraining'].after == jobs['scratch-seed0'].after == ()
    # Its name is not known before.
    with pytest.raises(FileNotFoundError):
        jobs['dino-pretrained-seed0'].command()
    (tmp_path / 'pretrain').mkdir()
    (tmp_path / 'pretrain/last_checkpoint').write_text('epoch_24.pth')
    assert jobs['dino-pretrained-seed0'].command()[-2:] == ['--pretrained', 'epoch_24.pth']
    assert '--pretrained' not in jobs['scratch-seed0'].command()
    smoke = {job.name: job for job in demo_all.make_jobs(parts, tmp_path, smoke=True)}
    assert {job.command()[-1] for job in smoke.values()} == {'--smoke'}


# ----------------------------------------------------------------------------------- the schedule


class FakeGroup:
    """Runs nothing; notes what began and ended, and fails as it is told."""

    def __init__(self, events, failing=()):
        self.events, self.failing, self.stopped = events, failing, False

    def execute(self, name, command):
        if self.stopped:
            return
        self.events.append(f'{name} begins')
        if name in self.failing:
            raise StepError(f'{name} broke')
        self.events.append(f'{name} ends')

    def stop(self):
        self.stopped = True


def job(part, name, cost=1.0, after=(), command=lambda: ['x']):
    return Job(part, name, command, cost, tuple(after))


def test_jobs_begin_by_what_waits_for_them_then_by_length():
    jobs = [job('a', 'short'), job('a', 'long', 5), job('b', 'base', 2), job('b', 'x', 9, ['base'])]
    assert [one.name for one in in_order(jobs)] == ['base', 'x', 'long', 'short']


@pytest.mark.parametrize('at_a_time', [1, 2, 8])
def test_a_job_waits_for_others(at_a_time):
    events = []
    jobs = [
        job('a', 'last', 9, ['first', 'second'], lambda: events.append('last is built') or ['x']),
        job('a', 'second', 2, ['first']),
        job('b', 'first'),
        job('b', 'free'),
    ]
    groups = {'a': FakeGroup(events), 'b': FakeGroup(events)}
    assert run_jobs(jobs, groups, at_a_time, Progress({})) == {}
    order = ['first ends', 'second begins', 'second ends', 'last is built', 'last begins']
    assert [event for event in events if event in order] == order
    assert len(events) == 2 * len(jobs) + 1


def test_a_long_job_that_became_possible_comes_before_short_ones():
    events = []
    jobs = [job('a', 'base'), job('a', 'long', 9, ['base']), job('b', 'x', 5), job('b', 'y', 4)]
    run_jobs(jobs, dict.fromkeys('ab', FakeGroup(events)), 1, Progress({}))
    assert events[::2] == ['base begins', 'long begins', 'x begins', 'y begins']


def test_at_most_so_many_run_side_by_side():
    both, most, running, lock = threading.Barrier(2, timeout=20), [], set(), threading.Lock()

    class Group(FakeGroup):
        def execute(self, name, command):
            with lock:
                running.add(name)
                most.append(len(running))
            both.wait()  # each meets another one
            with lock:
                running.remove(name)

    jobs = [job('a', str(i)) for i in range(6)]
    assert run_jobs(jobs, {'a': Group([])}, 2, Progress({})) == {}
    assert len(most) == 6 and max(most) == 2


def test_a_part_that_fails_does_not_stop_the_others(capsys):
    events = []
    jobs = [
        job('bad', 'breaks', 9),
        job('bad', 'later', 1),
        job('base', 'base', 8),
        job('needs', 'upper', 2, ['breaks']),
        job('good', 'fine', 3, ['base']),
    ]
    names = {one.part for one in jobs}
    groups = {name: FakeGroup(events, ['breaks']) for name in names}
    costs = {task_name(name, 'x'): 1.0 for name in names}
    progress = Progress(costs)
    failures = run_jobs(jobs, groups, 1, progress)
    assert failures == {'bad': 'breaks broke', 'needs': 'it needs breaks, which failed'}
    assert events == ['breaks begins', 'base begins', 'base ends', 'fine begins', 'fine ends']
    assert groups['bad'].stopped and not groups['good'].stopped
    assert set(progress.costs) == {'base x', 'good x'}  # so the time that is left is right
    assert 'bad failed, the others go on: breaks broke' in capsys.readouterr().err


def test_a_command_that_cannot_be_made_fails_its_part():
    def fail():
        raise FileNotFoundError('last_checkpoint')

    events = []
    groups = {'a': FakeGroup(events), 'b': FakeGroup(events)}
    jobs = [job('a', 'x', 2, command=fail), job('b', 'y')]
    assert run_jobs(jobs, groups, 1, Progress({})) == {'a': 'last_checkpoint'}
    assert events == ['y begins', 'y ends']


def test_what_succeeded_can_be_started_from_though_its_part_failed():
    events = []
    jobs = [job('a', 'base', 9), job('a', 'breaks', 8, ['base']), job('b', 'upper', 1, ['base'])]
    groups = {'a': FakeGroup(events, ['breaks']), 'b': FakeGroup(events)}
    assert set(run_jobs(jobs, groups, 1, Progress({}))) == {'a'}
    assert events[-1] == 'upper ends'


def test_an_interrupt_stops_everything():
    def interrupt():
        raise KeyboardInterrupt

    groups = {'a': FakeGroup([]), 'b': FakeGroup([])}
    jobs = [job('a', 'x', 2), job('b', 'y', 1, command=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, groups, 1, Progress({}))
    assert groups['a'].stopped and groups['b'].stopped


def test_progress_of_parts(capsys, monkeypatch):
    progress = Progress({'nuclei a/train': 30.0, 'nuclei a/test': 10.0, 'digits b/knn': 60.0})
    monkeypatch.setattr(parallel, 'STATUS_SECONDS', -1)
    now = progress.start
    monkeypatch.setattr('time.monotonic', lambda: now)
    nuclei, digits = (PartProgress(name, progress) for name in ('nuclei', 'digits'))
    nuclei.line('a', f'{BEGIN}a/train\n')
    now += 10
    nuclei.line('a', 'Epoch(train) [12][20/30]  lr: 0.1  eta: 0:00:20  time: 0.47')
    assert progress.left() == pytest.approx(90)  # a third of 30 in 10 seconds, 90 to go
    digits.line('b', f'{DONE}b/knn: all 90.0\n')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('] nuclei a/train epoch 12')
    assert lines[1].endswith('] digits b/knn: all 90.0')
    progress.drop('nuclei ')
    assert progress.left() == 0 and progress.running == {}


def test_chain_of_nuclei_says_what_it_does(tmp_path, monkeypatch, capsys):
    class Demo(demo_nuclei_chain.Demo):
        def prepare(self, *others):
            pass

        def finetune(self, start):
            self.steps.executed += 2

        def reconstruct(self):
            pass  # complete

        def report(self):
            self.steps.executed += 1

    monkeypatch.setattr(demo_nuclei_chain, 'Demo', Demo)
    demo_nuclei_chain.run('nuclei', tmp_path, smoke=True)
    tasks = [f'nuclei/{task}' for task in ('finetune', 'reconstruct', 'report')]
    said = ('done', 'complete', 'done')
    expected = []
    for task, end in zip(tasks, said, strict=True):
        expected += [f'{BEGIN}{task}', f'{DONE}{task}: {end}']
    assert capsys.readouterr().out.splitlines() == expected
    assert set(tasks) | {'pretraining/pretrain'} == set(nuclei_plan.costs())


# ------------------------------------------------------------------------------------ the command


def test_every_name_runs_its_script(tmp_path):
    """The shell script alone: with a set-up that does nothing and a Python that says its words."""
    tools, python = tmp_path / 'tools', tmp_path / '.venv/bin/python'
    tools.mkdir()
    shutil.copy(ROOT / 'tools/demo.sh', tools)
    (tools / 'setup_env.sh').write_text('')
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != 'ITPN_VENV'}
    for words, expected in (
        ('', 'demo.py --setup-seconds N'),
        ('nuclei --compare', 'demo.py --setup-seconds N --compare'),
        ('digits --seeds 1', 'demo_digits.py --seeds 1'),
        ('detection --compare --jobs=2', 'demo_aerial.py detection --compare --jobs=2'),
        ('rotated', 'demo_aerial.py rotated'),
        ('segmentation --smoke', 'demo_segmentation.py --smoke'),
        ('acceleration --work-dir x', 'demo_acceleration.py --work-dir x'),
        ('all --fresh --jobs 2', 'demo_all.py --fresh --jobs 2'),
        ('report --work-dir=x', 'demo_html.py --work-dir=x'),
    ):
        done = subprocess.run(
            ['bash', str(tools / 'demo.sh'), *words.split()],
            env=environment,
            capture_output=True,
            text=True,
        )
        said = re.sub(r'seconds \d+', 'seconds N', done.stdout.strip())
        assert said.removeprefix(f'{tools}/') == expected, done.stderr
        assert (ROOT / 'tools' / expected.split()[0]).is_file()


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """The command without set-up, trainings and page; what it called."""
    seen = {'forgotten': []}

    def run(parts, work, jobs, smoke):
        seen.update(parts=list(parts), jobs=jobs, smoke=smoke)
        return seen.get('failures', {})

    monkeypatch.setattr(demo_all, 'run', run)
    monkeypatch.setattr(demo_all, 'stop_like_an_interrupt', lambda: None)
    monkeypatch.setattr(demo_html, 'write_page', lambda work: work / 'report.html')
    monkeypatch.setattr(demo_all.Part, 'missing', None)
    return seen


def test_command(stubbed, tmp_path, capsys):
    command = ['--jobs', '2', '--work-dir', str(tmp_path)]
    assert demo_all.main(command) == 0
    assert stubbed['parts'] == list(SECTIONS) and stubbed['jobs'] == 2 and not stubbed['smoke']
    assert f'{tmp_path}/report.html' in capsys.readouterr().out
    record = json.loads((tmp_path / demo_all.RECORD).read_text())
    assert record['jobs'] == 2 and record['seconds'] >= 0
    stubbed['failures'] = {'digits': 'seed0 broke'}
    assert demo_all.main(command) == 1
    assert 'demo: digits failed: seed0 broke' in capsys.readouterr().err


def test_fresh_forgets_every_demo(stubbed, tmp_path):
    old = ['digits/scratch', 'detection/dino', 'rotated/rotated-faster-rcnn']
    old += ['segmentation/upernet', 'acceleration/dense']
    for folder in old:
        (tmp_path / folder).mkdir(parents=True)
    stamps = tmp_path / 'stamps'
    stamps.mkdir()
    for name in ('setup', 'data', 'pretrain'):
        (stamps / f'{name}.json').write_text('{}')
    assert demo_all.main(['--fresh', '--work-dir', str(tmp_path)]) == 0
    assert not any((tmp_path / folder).exists() for folder in old)
    assert {path.stem for path in stamps.iterdir()} == {'setup', 'data'}


def test_a_demo_whose_package_is_missing_is_left_out(stubbed, tmp_path, monkeypatch, capsys):
    missing = property(lambda part: 'mmrotate' if part.folder.name == 'rotated' else None)
    monkeypatch.setattr(demo_all.Part, 'missing', missing)
    assert demo_all.main(['--work-dir', str(tmp_path)]) == 0
    assert 'rotated' not in stubbed['parts'] and len(stubbed['parts']) == len(SECTIONS) - 1
    assert 'rotated is left out: needs mmrotate' in capsys.readouterr().err
    status = json.loads((tmp_path / 'rotated' / STATUS).read_text())
    assert 'mmrotate' in status['skipped'] and status['failed'] is None


def test_data_that_cannot_be_had_end_the_run(stubbed, tmp_path, monkeypatch, capsys):
    def run(*_):
        raise StepError("step 'data' failed")

    monkeypatch.setattr(demo_all, 'run', run)
    assert demo_all.main(['--work-dir', str(tmp_path)]) == 1
    assert "step 'data' failed" in capsys.readouterr().err
    assert not (tmp_path / demo_all.RECORD).exists()


def test_a_report_that_fails_is_told_and_the_next_are_written(parts, tmp_path, monkeypatch):
    written = []

    def fail():
        raise FileNotFoundError('train.json')

    few = {
        name: demo_all.Part(
            tmp_path / name, (), {name: ['x']}, {f'{name}/x': 1.0}, lambda: None, report
        )
        for name, report in (
            ('acceleration', fail),
            ('digits', lambda: written.append('digits')),
            ('rotated', lambda: written.append('rotated')),
        )
    }
    monkeypatch.setattr(demo_all.Demo, 'prepare', lambda *_: None)
    monkeypatch.setattr(demo_all.demo_acceleration, 'prepare', lambda work: None)
    monkeypatch.setattr(demo_all, 'run_jobs', lambda *_: {'rotated': 'broke'})
    failures = demo_all.run(few, tmp_path, 1, smoke=True)
    assert failures == {
        'rotated': 'broke',
        'acceleration': 'its report: FileNotFoundError: train.json',
    }
    assert written == ['digits']
    states = {name: json.loads((tmp_path / name / STATUS).read_text())['failed'] for name in few}
    assert states == {**failures, 'digits': None}


def test_status_is_that_of_the_last_run(tmp_path):
    write_status(tmp_path / 'x', failed='broke')
    write_status(tmp_path / 'x')
    assert json.loads((tmp_path / 'x' / STATUS).read_text())['failed'] is None


@pytest.mark.slow
def test_whole(tmp_path):
    """Every demo in a smoke run; one that fails is told, and the run goes on."""
    for package in ('mmdet', 'mmpretrain', 'mmseg'):
        pytest.importorskip(package)
    made_here = (Path(sys.prefix) / '.itpn_mm').is_dir()
    command = (
        ['bash', 'tools/demo.sh', 'all'] if made_here else [sys.executable, 'tools/demo_all.py']
    )

    def run():
        return subprocess.run(
            [*command, '--smoke', '--jobs', '2', '--work-dir', str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, 'ITPN_VENV': sys.prefix, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
        )

    first = run()
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    page = (tmp_path / 'report.html').read_text()
    assert 'Smoke run' in page and page.count('<img src="data:image/') >= 10
    assert len(re.findall(r'class="state complete"', page)) >= len(SECTIONS) - 1

    (tmp_path / 'segmentation/upernet/pretrained/seed0/train.json').unlink()
    logs = tmp_path / 'segmentation/logs/upernet-pretrained-seed0.log'
    logs.unlink()
    logs.mkdir()  # so that its command cannot be run
    again = run()
    assert again.returncode == 1 and 'demo: segmentation failed' in again.stderr
    assert again.stdout.count(': complete\n') > 40
    assert 'class="state failed"' in (tmp_path / 'report.html').read_text()
