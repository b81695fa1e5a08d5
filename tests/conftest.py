"""What all tests share: one thread, fixed seeds, where the repository is."""

import os
from pathlib import Path

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
