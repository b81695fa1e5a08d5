"""tools/benchmark_accuracy.py: rows run once, go on, fail, are stopped; and the stock scripts."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from itpn_mm.checkpoint import open_checkpoint, read_checkpoint
from itpn_mm.checkpoint.convert import convert
from itpn_mm.hosts import is_installed

from .tiny_configs import ROOT

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
sys.path.insert(0, str(ROOT / 'tools'))

import benchmark_accuracy as tool
from accuracy import launchers
from accuracy.data import DATA_ROOTS, data_root

from .tiny_zoo import measured, write_models, write_texts

COCO = {'coco/bbox_mAP': 0.548, 'coco/bbox_mAP_50': 0.7, 'coco/segm_mAP': 0.461}
SRUN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ['NOTES'], 'a') as file:
    file.write(json.dumps(sys.argv[1:]) + '\\n')
command = sys.argv[1:]
while command[0].startswith('--'):
    command.pop(0)
os.execvp(command[0], command)
"""


class Zoo:
    """Configs of texts, what is measured for each, and the tool run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.out = folder, write_texts(folder), folder / 'out'
        for name in ('small_coco', 'large_coco'):
            self.give(name, measured(**COCO))
        self.give('small_ade', measured(mIoU=54.25, aAcc=80.0))

    def give(self, name: str, text: str) -> Path:
        """Write a checkpoint."""
        path = self.folder / 'checkpoints' / f'{name}.pth'
        path.write_text(text)
        return path

    def arguments(self, *more: object) -> list[str]:
        """Command line."""
        data = [f'coco={self.folder}/coco', f'ade20k={self.folder}/ade']
        places = ['--out', self.out, '--checkpoints', self.folder / 'checkpoints']
        options = ['--model-index', self.index, '--data-root', *data, *places]
        return [str(argument) for argument in (*options, *more)]

    def run(self, *more: object) -> int:
        """The exit status of a run."""
        return tool.main(self.arguments(*more))

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each test of a checkpoint."""
        path = self.folder / 'checkpoints' / f'{name}.calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self) -> dict[str, dict]:
        """accuracy.json by name."""
        content = json.loads((self.out / 'accuracy.json').read_text())
        return {row['name']: row for row in content['rows']}


@pytest.fixture(autouse=True)
def keep_handler():
    """The tool leaves its own behind."""
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Zoo:
    monkeypatch.setattr(launchers, 'TOOLS', tmp_path / 'tools')
    return Zoo(tmp_path)


TESTED = ('small_coco', 'large_coco', 'small_ade')


def test_rows_are_run_once_and_tabled(zoo, capsys):
    assert zoo.run(*TESTED, '--cfg-options', 'test_dataloader.batch_size=4') == 0
    rows = zoo.rows()
    assert rows.keys() == set(TESTED)
    small = rows['small_coco']
    assert small['status'] == 'done' and small['device'] == 'Some Accelerator'
    box, mask = small['figures']
    assert (box['metric'], box['measured'], box['paper']) == ('box AP', 54.8, 53.0)
    assert box['difference'] == pytest.approx(1.8) and mask['difference'] == pytest.approx(-0.4)
    assert small['images_per_second'] == pytest.approx(4 / 0.5)
    assert small['share_of_loading'] == pytest.approx(0.2)
    assert rows['large_coco']['figures'][1]['paper'] is None
    text = (zoo.out / 'accuracy.md').read_text()
    assert '3 of 3 rows are done' in text
    assert '| small_coco | coco | box AP | 54.80 | 53.0 (Table V) | +1.80 | 8 | 0:00:0' in text
    assert '|  |  | mask AP | 46.10 | 46.5 (Table V) | -0.40 |  |  |' in text
    assert '|  |  | mask AP | 46.10 | - | - |  |  |' in text
    assert '| small_ade | ade20k | mIoU | 54.25 | 53.5 (Table V) | +0.75 |' in text
    assert '| small_coco | 1333 x 800 | annotations/val.json | 4 x 1 | Some Accelerator |' in text
    assert (zoo.out / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
    out = capsys.readouterr().out
    assert (
        '[ 3/3 ' in out
        and 'eta 0:00:00] small_ade: mIoU 54.25 (paper 53.5, difference +0.75)' in out
    )

    [call] = zoo.calls('small_coco')
    assert call[-2:] == ['--cfg-options', 'test_dataloader.batch_size=4']
    cfg = Config.fromfile(zoo.out / 'rows/small_coco/config.py')
    assert call[0] == cfg.filename
    assert data_root(cfg) == f'{zoo.folder}/coco'
    assert cfg.test_evaluator[1].ann_file == f'{zoo.folder}/coco/annotations/val.json'

    zoo.give('small_ade', measured(mIoU=10.25, aAcc=80.0))  # a file of the same size
    assert zoo.run(*TESTED, '--cfg-options', 'test_dataloader.batch_size=4') == 0
    assert [len(zoo.calls(name)) for name in TESTED] == [1, 1, 2]  # another checkpoint
    assert '| -43.25 |' in (zoo.out / 'accuracy.md').read_text()
    assert '] small_coco: complete' in capsys.readouterr().out
    assert zoo.run(*TESTED) == 0
    assert [len(zoo.calls(name)) for name in TESTED] == [2, 2, 3]  # other options


def test_row_that_fails_is_told_and_tried_again(zoo, capsys):
    zoo.give('small_coco', 'test.py: no such thing')
    zoo.give('small_ade', measured(aAcc=1.0))
    assert zoo.run(*TESTED) == 1
    assert {name: row['status'] for name, row in zoo.rows().items()} == {
        **dict(small_coco='failed', large_coco='done', small_ade='failed')
    }
    log = zoo.out / 'rows/small_coco/log.txt'
    told = f'small_coco: FAILED: test.py: no such thing; log: {log}'
    assert told in capsys.readouterr().out
    assert log.read_text().endswith('test.py: no such thing\n')
    text = (zoo.out / 'accuracy.md').read_text()
    assert f'* **failed**: small_coco: test.py: no such thing (log: {log})' in text
    assert '* **failed**: small_ade: the test has measured no accuracy (log: ' in text
    zoo.give('small_coco', measured(**COCO))
    zoo.give('small_ade', measured(mIoU=54.25))
    assert zoo.run(*TESTED) == 0
    assert [len(zoo.calls(name)) for name in TESTED] == [2, 1, 2]
    assert '**failed**' not in (zoo.out / 'accuracy.md').read_text()


def test_training_beside_the_results_stays(zoo):
    """The folder of a training has the name of its config."""
    training = zoo.out / 'small_ade'
    training.mkdir(parents=True)
    (training / 'iter_9.pth').write_text(measured(mIoU=50.0))
    (training / 'last_checkpoint').write_text(str(training / 'iter_9.pth'))
    assert zoo.run('small_ade', '--checkpoints', zoo.out) == 0
    assert zoo.run('small_ade', '--checkpoint', f'*={training}/iter_9.pth') == 0
    assert sorted(path.name for path in training.iterdir()) == [
        *('iter_9.calls', 'iter_9.pth', 'last_checkpoint')
    ]


def test_nothing_is_run_if_something_is_missing(zoo, capsys):
    """All that is missing, of all rows."""
    (zoo.folder / 'checkpoints/small_coco.pth').unlink()
    (zoo.folder / 'ade/images/validation').rmdir()
    assert zoo.run() == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(': ')[:2] for line in lines[:-1]] == [
        ['missing', 'small_coco'],
        ['missing', 'small_coco-384px'],
        ['missing', 'small_ade'],
    ]
    assert '--checkpoint small_coco=FILE' in lines[0]
    assert 'images/validation' in lines[2] and 'does not exist' in lines[2]
    assert lines[-1] == (
        '3 of 4 rows miss something; nothing was run; --skip-missing runs the others'
    )
    assert not zoo.out.exists()
    assert zoo.run('--skip-missing') == 1
    assert len(zoo.calls('large_coco')) == 1
    assert '* **missing**: small_coco: no checkpoint' in (zoo.out / 'accuracy.md').read_text()


def test_folder_of_data_that_is_not_there(zoo, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = zoo.arguments('large_coco', 'small_ade')
    place = arguments.index('--data-root')
    arguments[place + 1 : place + 3] = ['coco=/no/where']
    assert tool.main(arguments) == 2
    told = capsys.readouterr().err
    assert 'large_coco: no data: the folder /no/where does not exist; --data-root coco=' in told
    assert f'the folder {DATA_ROOTS["ade20k"]} does not exist; --data-root ade20k=FOLDER' in told


def test_dry_run_writes_nothing(zoo, capsys):
    assert zoo.run('large_coco', '--dry-run') == 0
    out = capsys.readouterr().out
    assert out.startswith('large_coco: to run\n')
    assert f'checkpoint: {zoo.folder}/checkpoints/large_coco.pth\n' in out
    assert f'data: coco, {zoo.folder}/coco (annotations/val.json)\n' in out
    assert f'{zoo.folder}/tools/test.py {zoo.out}/rows/large_coco/config.py' in out
    assert not zoo.out.exists() and not zoo.calls('large_coco')
    assert zoo.run('large_coco') == 0
    capsys.readouterr()
    assert zoo.run('*_coco', '--dataset', 'coco', '--dry-run') == 0
    out = capsys.readouterr().out
    assert 'large_coco: done\n' in out and 'small_coco: to run\n' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['midi_coco'], "'midi_coco' matches no config with test data; the nearest is"),
        (['small_in21k'], 'none of these configs has test data'),
        (['small_pretraining'], "'small_pretraining' matches no config with test data"),
        (['--task', 'detecting'], "--task must be of ['classification', 'detection', "),
        (['--dataset', 'voc'], "--dataset: no chosen config is of the data set 'voc'; there are"),
        (['--data-root', 'voc=/x'], '--data-root: no chosen config is of the data set'),
        (['--data-root', 'coco'], "must be NAME=PATH, but got 'coco'"),
        (['--checkpoint', '=x'], "must be NAME=PATH, but got '=x'"),
        (['--checkpoints', '/no/where'], '--checkpoints: /no/where is no folder'),
        (['--model-index', '/no/where'], '--model-index: /no/where does not exist'),
        (['--processes', '0'], 'must be a whole number of at least 1'),
        (['--processes', '2'], '--processes 2 needs --launcher pytorch or slurm'),
        (['--jobs', '2'], '--jobs 2 needs --launcher slurm'),
        (['--cfg-options', 'a'], "--cfg-options must be KEY=VALUE, but got 'a'"),
    ],
)
def test_wrong_arguments(zoo, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main([*zoo.arguments(), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not zoo.out.exists()


def test_slurm(zoo, monkeypatch):
    """By a stand-in for srun, which runs what it is asked for at once."""
    (zoo.folder / 'bin').mkdir()
    srun = zoo.folder / 'bin/srun'
    srun.write_text(SRUN)
    srun.chmod(0o755)
    monkeypatch.setenv('PATH', f'{srun.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('NOTES', str(zoo.folder / 'notes'))
    monkeypatch.setenv('GPUS_PER_NODE', '4')
    monkeypatch.delenv('SLURM_JOB_ID', raising=False)
    assert zoo.run(*TESTED, '--launcher', 'slurm', '--processes', '8', '--jobs', '3') == 0
    notes = [json.loads(line) for line in (zoo.folder / 'notes').read_text().splitlines()]
    assert {'--job-name=small_ade', '--ntasks=8', '--gres=gpu:4'} <= set(
        next(note for note in notes if '--job-name=small_ade' in note)
    )
    assert len(notes) == 3
    assert zoo.rows()['small_coco']['images_per_second'] == pytest.approx(8 * 2 / 0.5)


def test_stopped_it_ends_the_test_and_goes_on_later(zoo):
    zoo.give('small_ade', 'wait')
    log = zoo.out / 'rows/small_ade/log.txt'

    stopped = []

    def stop() -> None:
        for _ in range(2000):
            if log.exists() and 'Epoch(test)' in log.read_text():
                stopped.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as caught:
        zoo.run(*TESTED)
    thread.join()
    assert caught.value.code == 128 + signal.SIGTERM
    assert time.monotonic() - stopped[0] < 60  # the test would have waited for longer
    assert not (zoo.out / 'rows/small_ade/state.json').exists()
    states = {name: row['status'] for name, row in zoo.rows().items()}
    assert states == dict(small_coco='done', large_coco='done', small_ade='not run')
    assert '* **not run yet**: small_ade' in (zoo.out / 'accuracy.md').read_text()
    zoo.give('small_ade', measured(mIoU=54.25))
    assert zoo.run(*TESTED) == 0
    assert len(zoo.calls('small_coco')) == 1


@pytest.fixture
def run_real(monkeypatch):
    """A function that runs tiny models by the stock scripts and returns the rows by data set."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')

    def run(folder: Path, *datasets: str, more: tuple[str, ...] = ()) -> dict[str, dict]:
        index, arguments = write_models(folder, datasets)
        out = folder / 'out'
        status = tool.main([*arguments, '--model-index', str(index), '--out', str(out), *more])
        assert status == 0, '\n'.join(
            path.read_text()[-3000:] for path in out.glob('rows/*/log.txt')
        )
        rows = json.loads((out / 'accuracy.json').read_text())['rows']
        return {row['dataset']: row for row in rows}

    return run


def assert_measured(row: dict) -> None:
    assert row['status'] == 'done' and row['device'] == 'CPU'
    assert row['images_per_second'] > 0 and row['seconds'] > 0
    for figure in row['figures']:
        assert 0 <= figure['measured'] <= 100
        assert figure['difference'] == pytest.approx(figure['measured'] - figure['paper'])


def test_stock_script_on_a_folder_of_classes(tmp_path, run_real):
    """As the other three, slow ones below: real script, data and checkpoint."""
    pytest.importorskip('mmpretrain')
    [row] = run_real(tmp_path, 'imagenet').values()
    assert_measured(row)
    [top1] = row['figures']
    assert (top1['metric'], top1['measured'], top1['paper']) == ('top-1', 50.0, 81.7)


@pytest.mark.slow
def test_stock_scripts_of_the_other_tasks(tmp_path, run_real):
    datasets = ('coco', 'ade20k', *(['dota'] if is_installed('mmrotate') else []))
    rows = run_real(tmp_path, *datasets)
    assert rows.keys() == set(datasets)
    for row in rows.values():
        assert_measured(row)
    assert [figure['metric'] for figure in rows['coco']['figures']] == ['box AP', 'mask AP']
    assert [figure['metric'] for figure in rows['ade20k']['figures']] == ['mIoU']
    text = (tmp_path / 'out/accuracy.md').read_text()
    assert ('DOTA are of its test server' in text) == ('dota' in datasets)


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path, run_real):
    pytest.importorskip('mmpretrain')
    more = ('--launcher', 'pytorch', '--processes', '2')
    [row] = run_real(tmp_path, 'imagenet', more=more).values()
    assert_measured(row)
    assert row['processes'] == 2 and row['figures'][0]['measured'] == 50.0


@pytest.mark.slow
def test_file_of_the_authors(tmp_path):
    """A classifier in their layout is loaded as it is, to the same predictions."""
    pytest.importorskip('mmpretrain')
    index, arguments = write_models(tmp_path, ('imagenet',))
    [file] = (tmp_path / 'checkpoints').iterdir()
    theirs = tmp_path / 'theirs.pth'
    convert(open_checkpoint(file), theirs, to='authors')
    assert not any(name.startswith('backbone') for name in read_checkpoint(theirs))
    given = ['--checkpoint', f'*={theirs}', '--out', str(tmp_path / 'out')]
    assert tool.main([*arguments, '--model-index', str(index), *given]) == 0
    [row] = json.loads((tmp_path / 'out/accuracy.json').read_text())['rows']
    assert row['figures'][0]['measured'] == 50.0
