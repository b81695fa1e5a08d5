"""Which pictures to read, whether they are whole, and what to call their results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

from PIL import Image, UnidentifiedImageError

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
# What a result's name may end in; a picture's own name comes before.
ENDINGS = ('.png', '.json', '_labels.png', '_panoptic.png')


def find_pictures(paths: Sequence[str], out: Path) -> list[Path]:
    """Files that paths, folders and patterns stand for, each once.

    A folder gives the pictures that lie in it, not those of its sub-folders; the pattern
    `'FOLDER/**'` gives these too. A pattern gives every file that it matches, as a shell would. A
    path without wildcards is taken as it is, so that a missing file is reported with the others.

    Args:
        paths: What the user named.
        out: Folder for the results.

    Raises:
        FileNotFoundError: A folder holds no picture, or a pattern matches nothing.
        ValueError: One of them lies in `out`, where results would mix with pictures.
    """
    found: dict[Path, Path] = {}  # resolved, to see what is the same -> as it was named
    for path in paths:
        if Path(path).is_dir():
            files = [p for p in sorted(Path(path).iterdir()) if p.suffix.lower() in SUFFIXES]
            if not files:
                raise FileNotFoundError(f'{path}: no picture in this folder ({" ".join(SUFFIXES)})')
        elif Path(path).exists() or not has_magic(path):
            files = [Path(path)]
        else:
            files = [Path(p) for p in sorted(glob(path, recursive=True)) if Path(p).is_file()]
            if not files:
                raise FileNotFoundError(f'{path}: no file matches this pattern')
        for file in files:
            found.setdefault(file.resolve(), file)
    if inside := [file for resolved, file in found.items() if resolved.parent == out.resolve()]:
        raise ValueError(f'`--out` {out} holds {inside[0]}, a picture to read; take another folder')
    return list(found.values())


def name_results(files: Iterable[Path]) -> list[str]:
    """A name for the results of each file; files of one name are numbered."""
    taken: set[str] = set()
    names = []
    for file in files:
        name, number = file.stem, 1
        while taken.intersection(name + ending for ending in ENDINGS):
            number += 1
            name = f'{file.stem}-{number}'
        taken.update(name + ending for ending in ENDINGS)
        names.append(name)
    return names


def check_whole(path: Path) -> None:
    """Raise ValueError that says why a file cannot be a picture, or not a whole one.

    The loaders of OpenMMLab return what they could decode of a truncated file, and grey for the
    rest. So it is decoded by Pillow first; kinds of files that Pillow does not know are left to
    them.
    """
    if not path.exists():
        raise ValueError('no such file')
    if not path.stat().st_size:
        raise ValueError('the file is empty')
    try:
        with Image.open(path) as picture:
            picture.load()
    except UnidentifiedImageError:
        return
    except Exception as error:  # Pillow's plugins raise many kinds for a damaged file
        raise ValueError(f'not a whole picture ({first_line(error)})') from error


def first_line(error: Exception) -> str:
    """What an error says, without the lines that explain it further."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
