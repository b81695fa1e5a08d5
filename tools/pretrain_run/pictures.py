"""The pictures of a folder: found, read once, and those that cannot be read put aside."""

import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import check_data
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import ProgressBar
from mmengine.utils.dl_utils import set_multi_processing

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.pgm', '.bmp', '.tif', '.tiff', '.webp')
HELD_OUT = 8  # pictures, for the drawing, and at most a tenth
# Names are lines of a UTF-8 file, whose ends mmpretrain strips.
_UNFIT = re.compile(r'^\s|\s$|[\n\r\ud800-\udfff]')


def find_pictures(folder: Path) -> list[str]:
    """Paths within `folder` of the pictures in it and in the folders below, sorted.

    What is hidden (`.thumbnails`, `._x.jpg`) is passed over.

    Raises:
        ValueError: `folder` is not there, is no folder, or has no picture.
    """
    if not folder.is_dir():
        raise ValueError(f'FOLDER must be a folder with pictures, but {str(folder)!r} is none')
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        found += [
            os.path.relpath(os.path.join(place, name), folder)
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith('.')
        ]
    if not found:
        raise ValueError(
            f'FOLDER must hold pictures ({" ".join(SUFFIXES)}), but there is none in '
            f'{str(folder)!r} or below'
        )
    return sorted(found)


def sort_out(
    folder: Path, names: Sequence[str], listing: Path, jobs: int
) -> tuple[list[str], list[str]]:
    """Read all pictures as the training will, and strictly besides.

    Args:
        folder: Where they are.
        names: Their paths within it.
        listing: File to use for the names of those that are read.
        jobs: Processes.

    Returns:
        Names of the pictures that can be read; a line for each of the others.
    """
    unfit = [name for name in names if _UNFIT.search(name)]
    bad = [f'{name!r}: a name that does not fit into a list of names' for name in unfit]
    names = [name for name in names if not _UNFIT.search(name)]
    if not names:
        return [], bad
    write_names(listing, names)
    init_default_scope('mmpretrain')
    set_multi_processing('fork', opencv_num_threads=0)
    settings = data_set(folder, listing)
    settings['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    check_data.dataset = DATASETS.build(settings)
    good, bar = [], ProgressBar(len(names), file=sys.stderr)
    with multiprocessing.get_context('fork').Pool(jobs) as pool:
        for name, problems in zip(
            names, pool.imap(check_data.check_sample, range(len(names)), chunksize=8), strict=True
        ):
            bar.update()
            bad += [where for _, where in problems]
            good += [] if problems else [name]
    print(file=sys.stderr)
    return good, bad


def data_set(folder: Path, listing: Path) -> dict:
    """Config of mmpretrain's data set of the pictures of a list, without a pipeline."""
    return dict(
        type='CustomDataset',
        data_root=str(folder),
        ann_file=str(listing),
        with_label=False,
    )


def hold_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the names into those to train on, and a few spread over all of them to draw."""
    number = min(HELD_OUT, len(names) // 10)
    held_out = {names[(2 * i + 1) * len(names) // (2 * number)] for i in range(number)}
    return [name for name in names if name not in held_out], sorted(held_out)


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write a list of names, one a line."""
    path.write_text(''.join(f'{name}\n' for name in names), encoding='utf-8')


def read_names(path: Path) -> list[str]:
    """Read a list of names."""
    return path.read_text(encoding='utf-8').split('\n')[:-1]
