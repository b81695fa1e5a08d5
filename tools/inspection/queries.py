"""Which patches of a picture to look from."""

import numpy as np

SPACING = 0.25  # of the short side, between salient patches


def salient_patches(picture: np.ndarray, patch: int, count: int) -> list[tuple[int, int]]:
    """Rows and columns of the patches whose colours are the farthest from the picture's mean.

    They are chosen one after the other, apart from each other, by the picture alone, so that they
    are the same for every model (global contrast, as Achanta et al., CVPR 2009).

    Args:
        picture: (H, W, 3) uint8.
        patch: Side of a patch in pixels; patches that stick out of the picture are not chosen.
        count: At most so many.

    Raises:
        ValueError: The picture has no whole patch.
    """
    h, w = (side // patch for side in picture.shape[:2])
    if not h or not w:
        raise ValueError(
            f'a picture of {picture.shape[0]} x {picture.shape[1]} pixels has no whole patch of '
            f'{patch} x {patch}; give a larger `--size`'
        )
    colours = picture[: h * patch, : w * patch].reshape(h, patch, w, patch, 3).mean(axis=(1, 3))
    contrast = np.linalg.norm(colours - colours.mean(axis=(0, 1)), axis=2)
    rows, columns = np.mgrid[:h, :w]
    chosen: list[tuple[int, int]] = []
    while len(chosen) < count and np.isfinite(contrast).any():
        row, column = np.unravel_index(np.argmax(contrast), contrast.shape)
        chosen.append((int(row), int(column)))
        near = np.hypot(rows - row, columns - column) < max(SPACING * min(h, w), 1)
        contrast[near] = -np.inf
    return chosen


def patch_at(x: float, y: float, scale: float, patch: int, shape: tuple[int, ...]) -> tuple:
    """Row and column of the patch at a pixel of a file.

    Args:
        x: Column of the pixel.
        y: Row of the pixel.
        scale: Pixels of the picture that is shown over those of the file.
        patch: Side of a patch.
        shape: (H, W, ...) of the picture that is shown.

    Raises:
        ValueError: The pixel lies outside.
    """
    row, column = int(y * scale), int(x * scale)
    if min(x, y) < 0 or row >= shape[0] or column >= shape[1]:
        width, height = round(shape[1] / scale), round(shape[0] / scale)
        raise ValueError(f'`--query` {x:g},{y:g} lies outside its {width} x {height} pixels')
    return row // patch, column // patch
