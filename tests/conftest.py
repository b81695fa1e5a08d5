"""What all tests share: one thread, fixed seeds, where the repository is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from mmengine.registry import DefaultScope

pytest_plugins = ['tests.checklist']


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forget_default_scope() -> Iterator[None]:
    """A Runner leaves the scope of its config behind, where a later test would look for types."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def demo_data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data, made by the script; the archives stay in the repository's data/.archives."""
    out = tmp_path_factory.mktemp('demo_data')
    script, cache = root / 'tools' / 'prepare_demo_data.py', root / 'data' / '.archives'
    command = [sys.executable, str(script), '--out', str(out), '--cache', str(cache)]
    run = subprocess.run(command, capture_output=True, text=True)
    if 'error: cannot fetch' in run.stderr:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stderr
    return out / 'demo'
