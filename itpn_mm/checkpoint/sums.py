"""Check sums beside files: `<file>.sha256`, as `sha256sum` writes and checks them."""

import hashlib
from pathlib import Path

SUM_SUFFIX = '.sha256'


def sum_file(path: Path) -> Path:
    """Where the check sum of a file stands."""
    return path.with_name(path.name + SUM_SUFFIX)


def check_sum(path: Path) -> None:
    """Compare a file with the check sum beside it, if there is one.

    Raises:
        ValueError: The file is not the one that the sum was made of.
    """
    sums = sum_file(path)
    if not sums.is_file():
        return
    expected, found = sums.read_text(errors='replace').split(' ')[0], _sum(path)
    if found != expected:
        raise ValueError(
            f'{path}: the file is damaged: its SHA-256 is {found[:12]}..., but {sums.name} '
            f'says {expected[:12]!r}...'
        )


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
