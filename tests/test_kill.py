"""`kill -9` at random moments of one run, which goes on each time. Minutes.

bash tools/run_tests.sh --slow tests/test_kill.py
"""

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.checkpoint.resume import newest_good

from .test_resume.runs import config, differences

pytestmark = [pytest.mark.slow, pytest.mark.checklist('kill')]
KILLS, ITERATIONS = 20, 150
KEPT, INTERVAL = 2, 3
# A process that has imported everything and done nothing; each run is forked from it.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['tests.test_resume.killed'])


def pretraining(folder: Path) -> dict:
    """A shrunk shipped config that saves often."""
    cfg = config('pixel', folder)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.default_hooks.checkpoint.update(interval=INTERVAL, by_epoch=False, max_keep_ckpts=KEPT)
    return cfg.to_dict()


def start(cfg: dict, folder: Path, pause: float = 0.0) -> tuple:
    from .test_resume.killed import train

    count = CONTEXT.Value('i', 0, lock=False)
    process = CONTEXT.Process(target=train, args=(cfg, str(folder), count, pause), daemon=True)
    process.start()
    return process, count


def wait_for(number: int, count: Any, process: Any) -> None:
    """Wait until the process has run that many iterations."""
    end = time.time() + 120
    while count.value < number:
        assert time.time() < end and process.is_alive(), 'it does not go on'
        time.sleep(0.005)


def losses(folder: Path) -> dict[int, str]:
    """The loss of each iteration, which is the same whenever it was run."""
    found: dict[int, str] = {}
    for path in folder.glob('losses_*.jsonl'):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith('\n'):  # or the process was killed in the middle of it
                iteration, loss = json.loads(line)
                assert found.setdefault(iteration, loss) == loss, f'{path}: {iteration}'
    return found


def look(folder: Path) -> str:
    """What a kill left behind."""
    paths = list(folder.glob('*.pth'))
    if list(folder.glob('.*.tmp')):
        return 'within a file'
    if any(not path.with_name(f'{path.name}.sha256').exists() for path in paths):
        return 'before the check sum'
    if len(paths) > KEPT:
        return 'before the old one was removed'
    return 'elsewhere'


def test_kill_at_random_moments(tmp_path, record_figure):
    """In training, in writing, which is slowed down every other time, and in starting."""
    cfg, whole, cut = pretraining(tmp_path / 'data'), tmp_path / 'whole', tmp_path / 'cut'
    draw = random.Random(0)
    moments: dict[str, int] = {}
    last = 0
    for kill in range(KILLS):
        slow, starting = kill % 2 == 1, kill % 10 == 8
        process, count = start(cfg, cut, pause=0.04 if slow else 0.0)
        # A run begins after a checkpoint, so another is due after so many iterations.
        number = draw.choice((INTERVAL, 2 * INTERVAL)) if slow else draw.randint(1, 6)
        wait_for(0 if starting else number, count, process)
        time.sleep(draw.uniform(0.0, 1.0 if slow or starting else 0.3))
        assert process.is_alive(), 'it ended before it was killed: raise ITERATIONS'
        process.kill()
        process.join()
        moment = 'at the start' if starting else look(cut)
        moments[moment] = moments.get(moment, 0) + 1
        path, damaged = newest_good(cut)
        assert not damaged
        reached = int(path.stem.split('_')[1]) if path else 0
        assert reached >= last  # nothing that was saved is lost
        last = reached
    process, _ = start(cfg, cut)
    process.join(timeout=300)
    assert process.exitcode == 0
    process, _ = start(cfg, whole)
    process.join(timeout=300)
    assert process.exitcode == 0

    assert not list(cut.glob('.*.tmp'))
    assert len(losses(whole)) == ITERATIONS and losses(cut) == losses(whole)
    ends = [torch.load(f / f'iter_{ITERATIONS}.pth', weights_only=False) for f in (cut, whole)]
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert not differences(ends[0][part], ends[1][part], part)
    left = len(list(cut.glob('iter_*.pth')))
    said = ', '.join(f'{number} {moment}' for moment, number in sorted(moments.items()))
    record_figure('kill -9: recoveries, bit-equal at the end', KILLS, f'>= {KILLS}')
    record_figure('moments of the kills', said)
    record_figure('iterations run twice or more for it', redone(cut))
    assert left == KEPT


def redone(folder: Path) -> int:
    lines = sum(len(path.read_text().splitlines()) for path in folder.glob('losses_*.jsonl'))
    return lines - ITERATIONS
