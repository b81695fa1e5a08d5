"""Two processes with half of a batch each learn what one learns of the whole."""

import os
import subprocess
import sys

import pytest
import torch

from tests.tiny_configs import ROOT

from .draws import share_draws
from .two_ranks import CASES, run

pytestmark = pytest.mark.slow  # three processes import mmdet
ALIKE = [name for name in CASES if name != 'a process without noisy queries']


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp('ranks')
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    command = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--rdzv_backend=c10d']
    command += ['--rdzv_endpoint=localhost:0', '-m', 'tests.test_maskdino.two_ranks', folder]
    result = subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f'rank{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', ALIKE)
def test_two_processes_are_as_one(name, ranks, monkeypatch):
    """Losses on average, and gradients: 1e-5 of the largest of a parameter."""
    share_draws(monkeypatch)
    wanted = run(name, slice(0, 4))
    first, second = (rank[name] for rank in ranks)
    assert first['losses'].keys() == second['losses'].keys() == wanted['losses'].keys()
    for key, loss in wanted['losses'].items():
        mean = (first['losses'][key] + second['losses'][key]) / 2
        torch.testing.assert_close(
            mean, loss, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f'{k} {m}'
        )
    for key, gradient in wanted['gradients'].items():
        assert torch.equal(first['gradients'][key], second['gradients'][key])
        error = (first['gradients'][key] - gradient).abs().max()
        assert error <= 1e-5 * gradient.abs().max(), key


def test_a_process_without_noisy_queries(ranks):
    """Names of losses and gradients are those of the other process."""
    first, second = (rank['a process without noisy queries'] for rank in ranks)
    assert first['losses'].keys() == second['losses'].keys()
    noisy = [name for name in first['losses'] if 'dn_' in name]
    assert all(first['losses'][name] > 0 and second['losses'][name] == 0 for name in noisy)
    for key, gradient in first['gradients'].items():
        assert torch.equal(gradient, second['gradients'][key])
        assert gradient.isfinite().all() and gradient.any(), key
