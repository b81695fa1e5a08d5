"""Saves checkpoints so that a run can always go on from one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import Tensor

from itpn_mm.checkpoint.storage import ATOMIC_BACKEND, remove_unfinished
from itpn_mm.registry import HOOKS

from .partial_gradients import partial_gradients, restore_gradients


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose files are whole whenever the run is killed.

    A checkpoint goes to a temporary file, to the disk and then in place, with its SHA-256 beside
    it; only then the one that it takes the place of is removed (mmengine removes it first, so a
    folder that keeps one needs room for two here). On a full disk the run ends with an error, and
    what was saved before stays.

    With gradient accumulation, a checkpoint between two steps of the optimizer holds the gradients
    since the last, so none is lost when a run resumes from it.

    Args:
        *args: As of mmengine's hook; so are keywords.
        backend_args: Where to write, as in mmengine: on another storage than the local disk it is
            that storage which writes a file whole or not. None: this disk.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, backend_args=backend_args, **kwargs)
        self.local = backend_args is None and self.file_client_args is None
        if self.local:
            self.backend_args = dict(backend=ATOMIC_BACKEND)
        self._gradients: dict[str, Tensor] = {}
        self._replaced: list[str] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take what a resumed run begins with."""
        if runner._resume:
            self._gradients = checkpoint.pop('gradients', {})
            self._replaced = checkpoint.pop('replaced', [])

    def before_train(self, runner: Runner) -> None:
        """Hand over the gradients; clear away what a run that was killed here left behind."""
        super().before_train(runner)
        restore_gradients(runner, self._gradients)
        if is_main_process():
            self._remove_leftovers()
        self._gradients, self._replaced = {}, []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the gradients, and the names of files that go once this one is safe."""
        if self._gradients:
            checkpoint['gradients'] = self._gradients
        backend = getattr(self, 'file_backend', None)  # none before training
        if isinstance(backend, _RemoveLater) and backend.removals:
            checkpoint['replaced'] = backend.names()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_last():
            self._gradients = partial_gradients(runner) if self.save_optimizer else {}
            super()._save_checkpoint_with_step(runner, step, meta)
        self._gradients = {}

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    def _remove_leftovers(self) -> None:
        if self.local:
            remove_unfinished(self.out_dir)
        for name in self._replaced:
            path = self.file_backend.join_path(self.out_dir, name)
            if path in self._current():
                continue
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Have what is removed inside go only when all of it has succeeded."""
        if isinstance(self.file_backend, _RemoveLater):
            yield
            return
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        later.remove_all(keep=self._current())

    def _current(self) -> set[str]:
        """What was saved last, maybe under a name that was to be removed."""
        best = [getattr(self, 'best_ckpt_path', None)]
        best += getattr(self, 'best_ckpt_path_dict', {}).values()
        return {str(path) for path in (self.last_ckpt, *best) if path}


class _RemoveLater:
    """A file backend that notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removals: list[tuple[Any, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, filepath: str | Path) -> None:
        self.removals.append((self.backend.remove, str(filepath)))

    def rmtree(self, dir_path: str | Path) -> None:
        self.removals.append((self.backend.rmtree, str(dir_path)))

    def names(self) -> list[str]:
        return [Path(path).name for _, path in self.removals]

    def remove_all(self, keep: set[str]) -> None:
        for remove, path in self.removals:
            if path not in keep:
                remove(path)
