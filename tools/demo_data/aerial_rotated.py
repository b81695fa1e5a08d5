"""The aerial photographs rotated by known angles, in DOTA's format, cut by mmrotate's own tool."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from . import aerial
from .archives import ArchiveReader
from .pictures import save_png

# Degrees, counter-clockwise as one sees it. The held-out photograph has an angle of its own.
ANGLES = {'train': (10, 40, 70), 'val': (20,)}
GSD = 0.2  # metres a pixel, after the reduction
SPLIT_TOOL = Path(__file__).resolve().parents[1] / 'split_dota.py'
SIZE, GAP = aerial.TILE, 32  # of the patches; the median tree has 20 pixels, so one shows it whole


def build(folder: Path, reader: ArchiveReader) -> tuple[dict, dict]:
    """Write `raw/<split>/{images,labelTxt}` and the patches `<split>/{images,annfiles}`.

    Returns counts by split, and what was made of each (package, member).
    """
    counts, made = {}, {}
    for split, photographs in aerial.PHOTOGRAPHS.items():
        raw, trees = folder / 'raw' / split, 0
        for name, stem in photographs.items():
            picture, boxes = aerial.read_photograph(reader, stem)
            for angle in ANGLES[split]:
                rotated, corners = rotate(picture, boxes, angle)
                save_png(raw / 'images' / f'{name}_{angle:02d}.png', rotated)
                write_labels(raw / 'labelTxt' / f'{name}_{angle:02d}.txt', corners)
                trees += len(boxes)
            angles = ', '.join(map(str, ANGLES[split]))
            png = aerial.member(stem, 'png')
            made[aerial.PACKAGE, png] = f'{split} patches, rotated by {angles} degrees'
            made[aerial.PACKAGE, aerial.member(stem, 'xml')] = 'their boxes'
        counts[f'{split}_trees'] = trees
    cut(folder / 'raw', folder)
    for split in ANGLES:
        lines = [path.read_text().splitlines() for path in (folder / split / 'annfiles').iterdir()]
        counts[f'{split}_images'] = len(lines)
        counts[f'{split}_instances'] = sum(map(len, lines))
    return counts, made


def rotate(picture: np.ndarray, boxes: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate a whole photograph; what the larger picture shows beside it has its mean colour.

    Args:
        picture: (H, W, 3) uint8.
        boxes: (N, 4), left, top, right, bottom.
        angle: Degrees, counter-clockwise as one sees it.

    Returns:
        The picture, and the corners (N, 4, 2) of the boxes in it, which start at the upper left of
        the tree as it was and go clockwise.
    """
    height, width = picture.shape[:2]
    turn = rotation(angle)
    span = np.ceil(np.abs(turn) @ (width, height) - 1e-6).astype(int)  # of the new picture
    old, new = np.array([width, height]) / 2, span / 2
    # PIL asks where a pixel comes from: the inverse, as the rows of [turn' | shift].
    shift = old - turn.T @ new
    fill = tuple(int(value) for value in np.rint(picture.mean(axis=(0, 1))))
    rotated = Image.fromarray(picture).transform(
        tuple(span.tolist()),
        Image.Transform.AFFINE,
        np.column_stack([turn.T, shift]).ravel().tolist(),
        Image.Resampling.BICUBIC,
        fillcolor=fill,
    )
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    return np.asarray(rotated), (corners - old) @ turn.T + new


def rotation(angle: float) -> np.ndarray:
    """Matrix (2, 2) that turns x to the right, y downwards, counter-clockwise as one sees it."""
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return np.array([[cosine, sine], [-sine, cosine]])


def write_labels(path: Path, corners: np.ndarray) -> None:
    """Write boxes (N, 4, 2) as DOTA does: two lines of header, none of them difficult."""
    lines = ['imagesource:aerial', f'gsd:{GSD}']
    for box in corners.reshape(-1, 8):
        lines.append(' '.join([*(f'{value:.2f}' for value in box), aerial.CLASS, '0']))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')


def cut(raw: Path, out: Path) -> None:
    """Cut all splits into patches with mmrotate's tool. Raises OSError with what went wrong."""
    command = [sys.executable, str(SPLIT_TOOL), str(raw), '--out', str(out), '--processes', '1']
    command += ['--parts', *ANGLES, '--size', str(SIZE), '--gap', str(GAP)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise OSError(f'{SPLIT_TOOL.name}: {(run.stderr or run.stdout).strip().splitlines()[-1]}')
    for log in out.glob('*/*.log'):  # names and lines have the time in them
        log.unlink()
