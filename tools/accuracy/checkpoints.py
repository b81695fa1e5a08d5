"""Finds the checkpoint of a config by its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

SUFFIXES = ('.pth', '.pt', '.bin', '.safetensors')
SEPARATORS = ('_', '-', '.')  # between the name of a config and what else a file is called


class Checkpoints:
    """Files given by name or pattern, and those in a folder.

    Args:
        given: Pairs of a name, or a pattern of names, and a file; the first that fits counts.
        folder: Holds `NAME.pth`, `NAME_20260101.pth` or the work folder `NAME` of a training.
        names: Of all configs: a file is of the longest name that it begins with.
    """

    def __init__(
        self, given: Sequence[tuple[str, Path]], folder: Path | None, names: Iterable[str]
    ) -> None:
        self.given, self.folder = given, folder
        self.found: dict[str, list[Path]] = {}
        names = sorted(names, key=len, reverse=True)
        for path in sorted(folder.iterdir()) if folder else ():
            name = next((name for name in names if _belongs(path, name)), None)
            file = _last_checkpoint(path) if path.is_dir() else path
            if name and file and file.suffix in SUFFIXES:
                self.found.setdefault(name, []).append(file)

    def find(self, name: str) -> Path:
        """The checkpoint of a config.

        Raises:
            ValueError: There is none, or several in the folder, or the file that was given does
                not exist.
        """
        for pattern, file in self.given:
            if fnmatchcase(name, pattern):
                if not file.is_file():
                    raise ValueError(f'no checkpoint: {file} does not exist')
                return file
        found = self.found.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            files = ', '.join(file.name for file in found)
            raise ValueError(f'several checkpoints: {files}; choose by --checkpoint {name}=FILE')
        where = f'no file of this name in {self.folder}' if self.folder else 'none was given'
        raise ValueError(f'no checkpoint: {where}; --checkpoint {name}=FILE')


def _belongs(path: Path, name: str) -> bool:
    if path.is_dir():
        return path.name == name
    rest = path.name.removeprefix(name)
    return rest != path.name and rest.startswith(SEPARATORS)


def _last_checkpoint(folder: Path) -> Path | None:
    """The last one of a training; its note may stem from another machine."""
    note = folder / 'last_checkpoint'
    file = folder / Path(note.read_text().strip()).name if note.is_file() else None
    return file if file and file.is_file() else None
