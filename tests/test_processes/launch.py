"""Starts the two processes of `worker.py`."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def run_two_processes(case: str, out: Path, **env: str) -> list[dict]:
    """Run the function `case` of `worker.py` in two processes; what each of them found."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    command += ['--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0']
    command += ['-m', 'tests.test_processes.worker', case, str(out)]
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths), 'CUDA_VISIBLE_DEVICES': '', **env}
    env.setdefault('OMP_NUM_THREADS', '1')
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-6000:]
    return [torch.load(out / f'rank{rank}.pt') for rank in range(2)]
