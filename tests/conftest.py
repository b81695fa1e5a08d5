"""What all tests share: one thread, fixed seeds, where the repository is."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from mmengine.registry import DefaultScope


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
