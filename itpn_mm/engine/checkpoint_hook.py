"""Saves checkpoints so that a run can always go on from one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..checkpoint.storage import ATOMIC_BACKEND, remove_unfinished
from ..registry import HOOKS


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose files are whole whenever the run is killed.

    A checkpoint goes to a temporary file, to the disk and then in place, with its SHA-256 beside
    it; only then the one that it takes the place of is removed (mmengine removes it first, so a
    folder that keeps one needs room for two here). On a full disk the run ends with an error, and
    what was saved before stays.

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

    def before_train(self, runner: Runner) -> None:
        """Clear away what a run that was killed here left unfinished."""
        super().before_train(runner)
        if self.local and is_main_process():
            remove_unfinished(self.out_dir)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

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

    def remove_all(self, keep: set[str]) -> None:
        for remove, path in self.removals:
            if path not in keep:
                remove(path)
