"""A run is a function of its seed: not of what came before, of the process, or of the workers."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from .losses import PINNED, ROOT, run
from .test_losses import host

pytestmark = pytest.mark.checklist('determinism')

STEPS = 30
RUNS = ('pixel', 'mask-rcnn', 'maskdino')


def differing(first: dict, second: dict) -> list[str]:
    """What is logged or left behind by only one of two runs; all bits count."""
    names = first['values'].keys() | second['values'].keys()
    found = [n for n in names if first['values'].get(n) != second['values'].get(n)]
    return found + ['weights'] * (first['digest'] != second['digest'])


@pytest.mark.parametrize(
    'name', [RUNS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in RUNS[1:])]
)
def test_in_one_process(name, tmp_path, record_figure):
    """The second run begins with other states of all generators, and loads with two workers."""
    pytest.importorskip(host(name))
    first = run(name, tmp_path / 'first', steps=STEPS)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    second = run(name, tmp_path / 'second', steps=STEPS, workers=2)
    assert len(set(first['values']['loss'])) == STEPS
    found = differing(first, second)
    record_figure(
        f'{name}, one process, 0 and 2 workers, {STEPS} steps: differences', len(found), '<= 0'
    )
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_in_two_processes(name, tmp_path, record_figure):
    """The seed of Python's hashes differs, too."""
    pytest.importorskip(host(name))
    results = []
    for number, workers in enumerate((0, 2, 0)):
        out = tmp_path / f'{number}.json'
        command = [sys.executable, '-m', 'tests.losses', name, '--out', str(out)]
        command += ['--steps', str(STEPS), '--workers', str(workers)]
        env = os.environ | PINNED | dict(PYTHONHASHSEED=str(number + 1))
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        results.append(json.loads(out.read_text())['runs'][name])
    found = differing(*results[:2]) + differing(*results[1:])
    record_figure(
        f'{name}, processes of 0 and 2 workers, {STEPS} steps: differences', len(found), '<= 0'
    )
    assert not found


def test_what_counts_as_equal(tmp_path):
    """One bit of one weight, or of a loss."""
    first = dict(values=dict(loss=[1.0, 2.0]), digest='a')
    assert differing(first, dict(first)) == []
    assert differing(first, dict(first, digest='b')) == ['weights']
    assert differing(first, dict(first, values=dict(loss=[1.0, 2.0000002]))) == ['loss']
