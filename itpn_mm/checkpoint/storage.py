"""Checkpoint files that are written whole or not at all."""

import hashlib
import os
import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from .sums import sum_file

ATOMIC_BACKEND = 'itpn_mm.atomic'


@register_backend(ATOMIC_BACKEND, force=True)
class AtomicBackend(LocalBackend):
    """Local files of mmengine, each with its check sum beside it, that are never seen half written.

    The backend of :class:`itpn_mm.engine.AtomicCheckpointHook`; by name for what else writes
    checkpoints: `backend_args=dict(backend='itpn_mm.atomic')`.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; an older one of the name stays as it is until the new one is on the disk.

        Raises:
            OSError: The file could not be written, as on a full disk; the older one is still there.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        sums = sum_file(path)
        # The sum is never that of another file: without one, a file is checked by what it holds.
        sums.unlink(missing_ok=True)
        _write(path, obj)
        _write(sums, f'{hashlib.sha256(obj).hexdigest()}  {path.name}\n'.encode())

    def remove(self, filepath: str | Path) -> None:
        """Remove a file and its check sum."""
        sum_file(Path(filepath)).unlink(missing_ok=True)
        super().remove(filepath)


def _write(path: Path, data: bytes) -> None:
    """Write by way of a temporary file beside; in place only once it is on the disk."""
    unfinished = path.with_name(f'.{path.name}.tmp')
    try:
        with unfinished.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f'{path}: not written ({error.strerror}); it takes {len(data) / 2**20:.1f} MiB and '
            f'{free / 2**20:.1f} MiB are free; what was saved before is intact: make room, resume',
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the new name of a file survive a power failure; some file systems cannot."""
    if os.name != 'posix':
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a process that was killed while it wrote has left behind."""
    for path in Path(folder).glob('.*.pth*.tmp'):
        path.unlink(missing_ok=True)
