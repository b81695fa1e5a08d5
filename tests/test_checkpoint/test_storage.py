"""Checkpoints are written whole or not at all, and a run goes on from the newest good one."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import get_file_backend

from itpn_mm.checkpoint import storage
from itpn_mm.checkpoint.resume import check_file, newest_good
from itpn_mm.checkpoint.storage import ATOMIC_BACKEND, remove_unfinished
from itpn_mm.engine.runner_load import prepare_load

from .runs import make_runner

pytestmark = pytest.mark.checklist('atomic')
ROOT = Path(__file__).resolve().parents[2]
backend = get_file_backend(backend_args=dict(backend=ATOMIC_BACKEND))


def save(path: Path, value: float = 0.0) -> Path:
    """A checkpoint with its check sum."""
    torch.save(dict(meta=dict(iter=1), state_dict=dict(w=torch.full((50,), value))), path)
    backend.put(path.read_bytes(), path)
    return path


def value_of(path: Path) -> float:
    check_file(path)
    return torch.load(path)['state_dict']['w'][0].item()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def sums(path: Path) -> Path:
    return path.with_name(f'{path.name}.sha256')


@pytest.fixture
def run(tmp_path) -> SimpleNamespace:
    """The folder of a run that saved three times."""
    paths = [save(tmp_path / f'epoch_{i}.pth', i) for i in (1, 2, 3)]
    (tmp_path / 'last_checkpoint').write_text(str(paths[-1]))
    return SimpleNamespace(folder=tmp_path, paths=paths)


@pytest.mark.skipif(shutil.which('sha256sum') is None, reason='sha256sum is not there')
def test_sums_are_those_of_sha256sum(run):
    names = [sums(path).name for path in run.paths]
    check = subprocess.run(
        ['sha256sum', '-c', *names], cwd=run.folder, capture_output=True, text=True
    )
    assert check.returncode == 0 and check.stdout.count(': OK') == 3
    run.paths[1].write_bytes(b'else')
    assert subprocess.run(['sha256sum', '-c', '--status', *names], cwd=run.folder).returncode == 1


@pytest.mark.parametrize(
    'error', [OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize('step', ['write', 'fsync', 'replace'])
def test_the_old_file_stays_when_writing_fails(tmp_path, monkeypatch, step, error):
    """At each step of it, with an error of the disk or any other."""
    path = save(tmp_path / 'epoch_1.pth', 1.0)
    other = save(tmp_path / 'other_1.pth', 2.0).read_bytes()

    def fail(*args, **kwargs):
        raise error

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            fail()

    with monkeypatch.context() as patch:
        if step == 'write':
            real = Path.open
            patch.setattr(
                Path,
                'open',
                lambda p, mode='r', **k: (
                    Full(real(p, mode, **k)) if 'w' in mode else real(p, mode, **k)
                ),
            )
        else:
            patch.setattr(os, step, fail)
            patch.setattr(Path, step, fail, raising=False)
        with pytest.raises(type(error)) as raised:
            backend.put(other, path)
    assert value_of(path) == 1.0
    assert not [name for name in files(tmp_path) if name.endswith('.tmp')]
    if isinstance(error, OSError):
        assert raised.value.errno == errno.ENOSPC
        assert all(part in str(raised.value) for part in (str(path), 'MiB are free', 'intact'))
    backend.put(other, path)
    assert value_of(path) == 2.0


def test_killed_at_each_step(tmp_path, monkeypatch):
    """What a kill leaves behind is always a good file, the old one and then the new one."""
    path = save(tmp_path / 'epoch_1.pth', 1.0)
    new = save(tmp_path / 'epoch_2.pth', 2.0).read_bytes()
    seen, looking = [], []

    def look() -> None:
        if looking:
            return
        looking.append(True)
        copy = tmp_path / f'after_{len(seen)}'
        copy.mkdir()
        for name in files(tmp_path):
            if name.startswith(('epoch_1', '.epoch_1')):
                shutil.copy(tmp_path / name, copy)
        check_file(copy / path.name)
        remove_unfinished(copy)
        assert set(files(copy)) <= {path.name, sums(path).name}
        seen.append(value_of(copy / path.name))
        looking.clear()

    for module, step in ((os, 'fsync'), (Path, 'replace'), (Path, 'unlink')):
        real = getattr(module, step)
        monkeypatch.setattr(
            module, step, lambda *a, real=real, **k: (look(), real(*a, **k), look())[1]
        )
    backend.put(new, path)
    monkeypatch.undo()
    assert len(seen) >= 12 and seen == sorted(seen) and {*seen} == {1.0, 2.0}


def test_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    steps = []
    for module, step in ((os, 'fsync'), (Path, 'replace')):
        real = getattr(module, step)
        monkeypatch.setattr(
            module, step, lambda *a, real=real, step=step: (steps.append(step), real(*a))[1]
        )
    backend.put(b'x', tmp_path / 'file')
    assert steps == ['fsync', 'replace', 'fsync'] * 2  # the folder too; then the check sum


def test_only_what_is_unfinished_is_removed(tmp_path):
    kept = {'.epoch_1.pth', '.other.tmp', 'epoch_1.pth.tmp'}
    for name in (*kept, '.epoch_1.pth.tmp', '.epoch_1.pth.sha256.tmp'):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {*files(tmp_path)} == kept


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


DAMAGE = {
    'a bit': (flip_a_bit, 'SHA-256'),
    'truncated': (lambda path: os.truncate(path, path.stat().st_size // 2), 'SHA-256'),
    'emptied': (lambda path: os.truncate(path, 0), 'SHA-256'),
    'zeros': (lambda path: path.write_bytes(bytes(path.stat().st_size)), 'SHA-256'),
    'another sum': (lambda path: sums(path).write_text('0' * 64 + '  epoch_3.pth\n'), '000000'),
    'empty sum': (lambda path: sums(path).write_text(''), "''"),
    'no text as sum': (lambda path: sums(path).write_bytes(b'\xff' * 64), 'SHA-256'),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_damaged_newest_is_passed_over(run, kind, log, record_figure):
    damage, cause = DAMAGE[kind]
    damage(run.paths[2])
    path, damaged = newest_good(run.folder)
    assert path == run.paths[1] and list(damaged) == [run.paths[2]]
    runner = SimpleNamespace(work_dir=str(run.folder), _resume=True, _load_from=None)
    prepare_load(runner)
    assert runner._load_from == str(run.paths[1])
    [(_, message)] = log
    assert message.startswith('epoch_3.pth is passed over, the run goes on from epoch_2.pth')
    assert cause in message and '\n' not in message
    record_figure('kinds of damage to the newest checkpoint', ', '.join(DAMAGE))


@pytest.mark.parametrize('damage', [flip_a_bit, DAMAGE['truncated'][0], DAMAGE['emptied'][0]])
def test_damage_is_found_without_a_sum(run, damage):
    """As when a run is killed between a file and its check sum."""
    sums(run.paths[2]).unlink()
    assert newest_good(run.folder) == (run.paths[2], {})
    damage(run.paths[2])
    assert newest_good(run.folder)[0] == run.paths[1]


def test_all_damaged(run):
    for path in run.paths:
        os.truncate(path, 10)
    with pytest.raises(ValueError, match=r'no checkpoint in .* is whole') as error:
        newest_good(run.folder)
    assert all(path.name in str(error.value) for path in run.paths)
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=r'epoch_3\.pth: the file is damaged'):
        prepare_load(SimpleNamespace(work_dir='', _resume=True, _load_from=str(run.paths[2])))


@pytest.mark.parametrize(
    'said', ['', '\n', 'epoch_9.pth', '/no/such/folder/epoch_1.pth', '{}/epoch_2.pth', None]
)
def test_what_mmengine_noted_down_may_be_wrong(run, said):
    """Empty, stale or of another machine, or of before the last one: the last one is taken."""
    pointer = run.folder / 'last_checkpoint'
    pointer.unlink() if said is None else pointer.write_text(said.format(run.folder))
    assert newest_good(run.folder) == (run.paths[2], {})


def test_checkpoints_in_another_folder(run, tmp_path):
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(run.paths[1]))
    assert newest_good(work_dir) == (run.paths[2], {})
    # A copy of a folder still names the original, which may have gone on.
    own = Path(shutil.copy(run.paths[1], work_dir))
    assert newest_good(work_dir) == (own, {})


def test_nothing_to_resume(tmp_path):
    save(tmp_path / 'best_accuracy_epoch_5.pth')  # without optimizer
    save(tmp_path / 'best_iter_500.pth')
    (tmp_path / 'nonfinite_iter_5_rank0.pth').write_bytes(b'')
    (tmp_path / '.epoch_1.pth.tmp').write_bytes(b'')
    assert newest_good(tmp_path) == (None, {})
    runner = SimpleNamespace(work_dir=str(tmp_path), _resume=True, _load_from=None, cfg={})
    prepare_load(runner)
    assert (runner._resume, runner._load_from) == (False, None)


def test_order(tmp_path):
    """By number from the one noted down on; those of an earlier run in the folder are older."""
    old = [save(tmp_path / f'epoch_{i}.pth') for i in (1, 2, 3, 9)]
    for i, path in enumerate(old):
        os.utime(path, (1000 + i, 1000 + i))
    assert newest_good(tmp_path)[0] == old[3]
    pointer = tmp_path / 'last_checkpoint'
    new = [save(tmp_path / f'epoch_{i}.pth') for i in (1, 2)]
    assert newest_good(tmp_path)[0] == new[1]
    pointer.write_text(str(new[0]))  # killed before it was told of the second
    assert newest_good(tmp_path)[0] == new[1]
    for path in new:
        os.truncate(path, 10)
    assert newest_good(tmp_path)[0] == old[3]
    # A copy, in which all are new.
    copy = tmp_path / 'copy'
    copy.mkdir()
    for i in (10, 9, 8):
        save(copy / f'iter_{i}.pth')
    (copy / 'last_checkpoint').write_text(str(copy / 'iter_10.pth'))
    assert newest_good(copy)[0].name == 'iter_10.pth'
    # Another name, which is known from the note only.
    save(copy / 'model-11.pth')
    (copy / 'last_checkpoint').write_text(str(copy / 'model-11.pth'))
    assert newest_good(copy)[0].name == 'model-11.pth'


@pytest.mark.parametrize('damage', ['no files', 'one truncated', 'one with another sum'])
def test_shards(run, damage):
    """Of FSDP, a file for each process in a folder."""
    newest = run.folder / 'epoch_4.pth'
    newest.mkdir()
    shards = [save(newest / f'rank{rank}.pth') for rank in range(2)]
    assert newest_good(run.folder) == (newest, {})
    if damage == 'no files':
        shutil.rmtree(newest)
        newest.mkdir()
    elif damage == 'one truncated':
        sums(shards[1]).unlink()
        os.truncate(shards[1], 100)
    else:
        sums(shards[1]).write_text(sums(shards[0]).read_text().replace('rank0', 'rank1'))
        flip_a_bit(shards[1])
    path, damaged = newest_good(run.folder)
    assert path == run.paths[2] and list(damaged) == [newest]
    assert damage == 'no files' or 'rank1.pth' in damaged[newest]


def test_folder_of_another_make(run):
    newest = run.folder / 'epoch_4.pth'
    newest.mkdir()
    (newest / 'mp_rank_00_model_states.pt').write_bytes(b'for DeepSpeed to read')
    assert newest_good(run.folder) == (newest, {})


def test_the_old_goes_when_the_new_is_safe(tmp_path, monkeypatch):
    """Keeping one: there are two in between, and the check sums go with their files."""
    seen, put, remove = [], storage.AtomicBackend.put, storage.AtomicBackend.remove

    def traced_put(self, obj, path):
        put(self, obj, path)
        seen.append(('put', Path(path).name))

    def traced_remove(self, path):
        # what is left when this one is gone is good
        others = [p for p in tmp_path.glob('epoch_*.pth') if p.name != Path(path).name]
        for other in others:
            check_file(other)
        assert others
        remove(self, path)
        seen.append(('remove', Path(path).name))

    monkeypatch.setattr(storage.AtomicBackend, 'put', traced_put)
    monkeypatch.setattr(storage.AtomicBackend, 'remove', traced_remove)
    make_runner(tmp_path, epochs=3, interval=1, max_keep_ckpts=1).train()
    assert seen == [
        ('put', 'epoch_1.pth'),
        ('put', 'epoch_2.pth'),
        ('remove', 'epoch_1.pth'),
        ('put', 'epoch_3.pth'),
        ('remove', 'epoch_2.pth'),
    ]
    assert [p for p in files(tmp_path) if 'pth' in p] == ['epoch_3.pth', 'epoch_3.pth.sha256']


def test_best_of_the_same_name_stays(tmp_path):
    """A better value in the same epoch, as when its validation is run again."""
    runner = make_runner(tmp_path, epochs=1, save_best='value', rule='greater', interval=1)
    runner.train()
    [hook] = [h for h in runner.hooks if hasattr(h, 'best_ckpt_path')]
    for value in (1.0, 2.0):
        hook.after_val_epoch(runner, dict(value=value))
        assert Path(hook.best_ckpt_path).name == 'best_value_epoch_1.pth'
        check_file(hook.best_ckpt_path)
    runner.train_loop._epoch += 1
    hook.after_val_epoch(runner, dict(value=3.0))
    assert [p for p in files(tmp_path) if p.startswith('best')] == [
        'best_value_epoch_2.pth',
        'best_value_epoch_2.pth.sha256',
    ]
    assert newest_good(tmp_path)[0].name == 'epoch_2.pth'


def test_full_disk(tmp_path, record_figure):
    """A run that cannot write ends with an error; what it saved before is whole and goes on."""
    work_dir = tmp_path / 'run'
    make_runner(work_dir, epochs=1).train()
    before = (work_dir / 'epoch_1.pth').read_bytes()
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    result = subprocess.run(
        [sys.executable, '-m', 'tests.test_checkpoint.fill_disk', str(work_dir)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('OSError: ') and 'epoch_2.pth: not written (File too large)' in last
    assert [p for p in files(work_dir) if 'pth' in p] == ['epoch_1.pth', 'epoch_1.pth.sha256']
    assert (work_dir / 'epoch_1.pth').read_bytes() == before
    runner = make_runner(work_dir, epochs=3, resume=True)
    runner.train()
    straight = make_runner(tmp_path / 'straight', epochs=3)
    straight.train()
    assert runner.iter == straight.iter == 9
    assert torch.equal(runner.model.weight, straight.model.weight)
    record_figure('full disk: exit code, checkpoints lost', '1, none', 'not 0, none')


def test_what_a_kill_kept_from_removal_goes_later(tmp_path, monkeypatch):
    """Killed when the new one was safe, and the old one, which it takes the place of, there."""
    with monkeypatch.context() as patch:
        patch.setattr(storage.AtomicBackend, 'remove', lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_runner(tmp_path, epochs=3, interval=1, max_keep_ckpts=1).train()
    saved = ['epoch_1.pth', 'epoch_1.pth.sha256', 'epoch_2.pth', 'epoch_2.pth.sha256']
    assert [p for p in files(tmp_path) if 'pth' in p] == saved
    make_runner(tmp_path, epochs=2, resume=True, interval=1, max_keep_ckpts=1).train()
    assert [p for p in files(tmp_path) if 'pth' in p] == saved[2:]
