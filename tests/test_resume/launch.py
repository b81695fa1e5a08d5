"""Starts `worker.py` in processes of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(*args: object, processes: int = 1) -> subprocess.Popen:
    """Start it with these arguments; what it prints goes to `stdout`."""
    command = [sys.executable, '-m']
    if processes > 1:
        command += ['torch.distributed.run', f'--nproc_per_node={processes}']
        command += ['--rdzv_backend=c10d', '--rdzv_endpoint=localhost:0', '-m']
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return subprocess.Popen(
        [*command, 'tests.test_resume.worker', *map(str, args)],
        cwd=ROOT,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(paths),
            'CUDA_VISIBLE_DEVICES': '',
            'OMP_NUM_THREADS': '1',
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
