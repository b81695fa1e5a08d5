"""Maps of classes as files, and how well they agree."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

UNLABELLED = 0  # in a file; the first class is 1


def read_maps(truth: Path, found: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label maps (H, W) of each tile, true and predicted, by file name.

    Raises:
        FileNotFoundError: A tile was not predicted.
    """
    return {
        path.name: (read_map(path), read_map(found / path.name))
        for path in sorted(truth.glob('*.png'))
    }


def read_map(path: Path) -> np.ndarray:
    """(H, W) uint8."""
    return np.asarray(Image.open(path))


def class_ious(maps: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int) -> list[float]:
    """IoU of each class in percent, over the pixels of all tiles; NaN where there are none.

    Args:
        maps: True and predicted labels of each tile; classes count from 1. What is unlabelled in
            truth counts for nothing.
        num_classes: How many.
    """
    shared, either = np.zeros((2, num_classes))
    for truth, found in maps:
        labelled = truth != UNLABELLED
        for i in range(num_classes):
            true, predicted = truth[labelled] == i + 1, found[labelled] == i + 1
            shared[i] += (true & predicted).sum()
            either[i] += (true | predicted).sum()
    with np.errstate(invalid='ignore'):
        return (100 * shared / either).tolist()


def majority_ious(truths: Iterable[np.ndarray], num_classes: int) -> list[float]:
    """`class_ious` of the commonest class everywhere."""
    truths = list(truths)
    counts = sum(np.bincount(truth.ravel(), minlength=num_classes + 1) for truth in truths)
    commonest = 1 + int(np.argmax(counts[1:]))
    return class_ious([(truth, np.full_like(truth, commonest)) for truth in truths], num_classes)
