"""Which checkpoint a run goes on from: the newest one that is whole."""

import math
import re
from pathlib import Path

from .io import read_file
from .shards import shard_files


def check_file(path: str | Path) -> None:
    """Check that a checkpoint is whole: by the check sum beside it, if any, and by reading it.

    Args:
        path: File that a run is to be resumed from, or a folder of shards.

    Raises:
        ValueError: It is not; the message names the file and what is wrong.
        FileNotFoundError: There is no such file.
    """
    path = Path(path).expanduser()
    files = shard_files(path)
    if not files and path.is_dir() and any(path.iterdir()):
        return  # of DeepSpeed, which has formats of its own
    for file in files or [path]:
        read_file(file, resumable=True)


def newest_good(folder: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """Find the checkpoint to resume from: the last one of a run that is whole.

    Args:
        folder: The folder of the run, with `epoch_3.pth` or `iter_500.pth` and the like; where its
            file `last_checkpoint` names one that is elsewhere only, that folder is looked at.

    Returns:
        The checkpoint, None if there is none at all, and the newer ones that are damaged with what
        is wrong with each.

    Raises:
        ValueError: There are checkpoints, but every one is damaged.
    """
    damaged = {}
    for path in _candidates(Path(folder)):
        try:
            check_file(path)
        except ValueError as error:
            damaged[path] = str(error)
        else:
            return path, damaged
    if damaged:
        raise ValueError(
            f'no checkpoint in {folder} is whole: {"; ".join(damaged.values())}; remove them to '
            'train from the beginning'
        )
    return None, {}


def _candidates(folder: Path) -> list[Path]:
    """The checkpoints of the run of a folder, the newest first, wherever they are."""
    last = _last_checkpoint(folder)
    if last is not None:
        # The first of two equal ones: a copied folder still names the original.
        folder = max(
            (folder, last.parent),
            key=lambda place: ((place / last.name).exists(), len(_newest_first(place)) > 0),
        )
    return _newest_first(folder, last and folder / last.name)


def _last_checkpoint(folder: Path) -> Path | None:
    """What mmengine noted down, maybe not in time; it is empty if the run was killed right then."""
    pointer = folder / 'last_checkpoint'
    said = pointer.read_text().strip() if pointer.is_file() else ''
    return Path(said) if said else None


def _newest_first(folder: Path, last: Path | None = None) -> list[Path]:
    """What a run can be resumed from; the best so far (`best_*.pth`) has no optimizer.

    Times of writing tell the order, for a folder that is trained in anew holds later epochs of the
    run before. In a copy of a folder all are new; so from `last` on, it is numbers that tell.
    """
    names = re.compile(r'(?!best_).*_\d+\.pth')
    paths = [p for p in folder.glob('*.pth') if names.fullmatch(p.name) or p == last]
    since = last.stat().st_mtime_ns if last in paths else math.inf

    def age(path: Path) -> tuple[bool, float, float]:
        time = path.stat().st_mtime_ns
        number = int((re.findall(r'\d+', path.stem) or [0])[-1])
        return (True, number, time) if time >= since else (False, time, number)

    return sorted(paths, key=age, reverse=True)
