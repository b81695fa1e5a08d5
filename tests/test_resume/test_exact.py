"""2N iterations, and N, an interruption and N: bit-equal."""

import pytest

pytest.importorskip('mmpretrain')

from .runs import EPOCH, config, differences, remains, run, save_every

pytestmark = pytest.mark.checklist('resume')
slow = pytest.mark.slow
HOSTS = {'mask-rcnn': 'mmdet', 'upernet': 'mmseg'}


def with_workers(cfg, workers: str):
    number = int(workers[0])
    cfg.train_dataloader.update(num_workers=number, persistent_workers='persistent' in workers)
    return cfg


@pytest.mark.parametrize(
    ('name', 'workers', 'interval', 'by_epoch', 'stop'),
    [
        ('pixel', '0', 4, False, 5),
        ('classifier', '2, persistent', 1, True, 8),
        pytest.param('upernet', '0', 4, False, 5, marks=slow),
        pytest.param('pixel', '2', 4, False, 4, marks=slow),
        pytest.param('pixel', '2, persistent', EPOCH, False, 8, marks=slow),
        pytest.param('pixel', '0', 1, True, 7, marks=slow),
        pytest.param('clip', '0', EPOCH, False, EPOCH, marks=slow),
        pytest.param('clip', '2', 4, False, 9, marks=slow),
        pytest.param('clip', '2, persistent', 1, True, 7, marks=slow),
        pytest.param('classifier', '0', 4, False, 10, marks=slow),
        pytest.param('classifier', '2', EPOCH, False, 7, marks=slow),
        pytest.param('mask-rcnn', '0', 4, False, 5, marks=slow),
        pytest.param('mask-rcnn', '2', 1, True, 9, marks=slow),
        pytest.param('mask-rcnn', '2, persistent', EPOCH, False, EPOCH, marks=slow),
        pytest.param('upernet', '2', 4, False, 9, marks=slow),
        pytest.param('upernet', '2, persistent', EPOCH, False, EPOCH, marks=slow),
    ],
)
def test_interrupted_run_is_bit_equal(
    name, workers, interval, by_epoch, stop, tmp_path, record_figure
):
    """With checkpoints within epochs and at their end, and iterations lost after the last one."""
    pytest.importorskip(HOSTS.get(name, 'mmpretrain'))
    cfg = save_every(config(name, tmp_path / 'data'), interval, by_epoch)
    cfg = with_workers(cfg, workers)
    whole = run(cfg, tmp_path / 'whole')
    first = run(cfg, tmp_path / 'cut', stop=stop)
    resumed = run(cfg, tmp_path / 'cut', resume=True)

    saved = interval * EPOCH if by_epoch else stop - stop % interval
    assert list(whole.losses) == list(range(2 * EPOCH)) and list(first.losses) == list(range(stop))
    assert list(resumed.losses) == list(range(saved, 2 * EPOCH))
    found = differences(first.losses | resumed.losses, whole.losses, 'losses')
    found += differences(remains(resumed), remains(whole))
    assert not found, found[:20]
    # Nothing of it is equal because it stands still.
    losses = [float(logs['loss']) for logs in whole.losses.values()]
    assert len(set(losses)) == len(losses)
    record_figure(f'bit-equal after resuming: {name}, workers', workers)


@slow
@pytest.mark.checklist('determinism')
def test_the_number_of_workers_changes_nothing(tmp_path):
    """Interrupted too, with another number afterwards."""
    cfg = save_every(config('pixel', tmp_path / 'data'), 3)
    none = run(with_workers(cfg, '0'), tmp_path / 'none')
    run(with_workers(cfg, '1'), tmp_path / 'other', stop=4)
    other = run(with_workers(cfg, '2, persistent'), tmp_path / 'other', resume=True)
    found = differences(remains(none), remains(other))
    assert not found, found[:20]
