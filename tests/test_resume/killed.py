"""The process that `test_kill.py` kills; imported ahead by the one that it is forked from."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import mmpretrain  # noqa: F401
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from itpn_mm.checkpoint import storage
from itpn_mm.engine import (  # noqa: F401
    AtomicCheckpointHook,
    EMATeacherHook,
    NonFiniteHook,
    PreflightHook,
    SeedHook,
)

from .runs import run


@HOOKS.register_module(force=True)
class Tell(Hook):
    """Writes each loss to a file at once, and counts them for whoever kills the process."""

    priority = 'NORMAL'  # ahead of the checkpoint hook

    def __init__(self, path: str, count: Any) -> None:
        self.path, self.count = path, count

    def before_train(self, runner) -> None:
        self.file = Path(self.path).open('a')  # noqa: SIM115

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.file.write(json.dumps([runner.iter, outputs['loss'].item().hex()]) + '\n')
        self.file.flush()
        self.count.value += 1


class Slowly:
    """A file to which bytes go in ten pieces, with time to be killed in between."""

    def __init__(self, file: Any, pause: float) -> None:
        self.file, self.pause = file, pause

    def __enter__(self) -> 'Slowly':
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> None:
        step = len(data) // 10 + 1
        for start in range(0, len(data), step):
            self.file.write(data[start : start + step])
            self.file.flush()
            time.sleep(self.pause)


def write_slowly(pause: float) -> None:
    """Let checkpoints take a while, between the steps of writing too."""
    real_open, real_sync = Path.open, storage.os.fsync

    def slow_open(path: Path, mode: str = 'r', **kwargs: Any) -> Any:
        file = real_open(path, mode, **kwargs)
        return Slowly(file, pause) if path.suffix == '.tmp' else file

    def slow_sync(handle: int) -> None:
        time.sleep(pause)
        real_sync(handle)
        time.sleep(pause)

    Path.open, storage.os.fsync = slow_open, slow_sync


def train(cfg: dict, folder: str, count: Any, pause: float) -> None:
    """Begin or go on with the run in `folder`."""
    torch.set_num_threads(1)
    if pause:
        write_slowly(pause)
    work_dir = Path(folder)
    work_dir.mkdir(exist_ok=True)
    number = next(n for n in itertools.count() if not (work_dir / f'losses_{n}.jsonl').exists())
    tell = Tell(str(work_dir / f'losses_{number}.jsonl'), count)
    cfg = Config(cfg)
    HOOKS.register_module(name='Told', module=lambda: tell, force=True)
    cfg.custom_hooks.insert(0, dict(type='mmengine.Told'))
    run(cfg, work_dir, resume=True)
