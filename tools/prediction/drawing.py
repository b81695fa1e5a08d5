"""Draws predictions with the visualizers of mmdet, mmrotate and mmseg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from .results import is_rotated

LEAST_SIDE = 640  # pixels: names and scores do not fit into less
OF_MASKS, OF_LINES = 0.5, 0.9  # opacity
FONT = cv2.FONT_HERSHEY_SIMPLEX  # mmseg's


class Drawer:
    """Draws what a model found on its pictures.

    Args:
        names: Names of the classes.
        palette: Their RGB colours.
    """

    def __init__(self, names: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> None:
        self.meta = dict(classes=list(names), palette=list(palette))

    def draw_instances(self, image: np.ndarray, found: InstanceData, file: Path) -> None:
        """Write boxes, horizontal or rotated, and masks on a picture (H, W, 3), BGR, as PNG."""
        image, factor = enlarge(image)
        if not len(found):  # mmdet's draws nothing either, or fails
            write_png(file, image)
            return
        found = _enlarge_instances(found, factor)
        from mmdet.structures import DetDataSample

        visualizer = self._rotated if is_rotated(found.bboxes) else self._horizontal
        visualizer.line_width = max(2, round(max(image.shape[:2]) / 400))
        visualizer.alpha = OF_MASKS if 'masks' in found else OF_LINES
        np.random.seed(0)  # the visualizer varies colours of masks at random
        self._draw(visualizer, image, DetDataSample(pred_instances=found), file, pred_score_thr=-1)

    def draw_labels(self, image: np.ndarray, labels: np.ndarray, file: Path) -> None:
        """Write classes (H, W) with their names over a picture (H, W, 3), BGR, as PNG."""
        from mmseg.structures import SegDataSample

        image, factor = enlarge(image)
        labels = labels.repeat(factor, 0).repeat(factor, 1)
        sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
        present = [self.meta['classes'][label] for label in np.unique(labels)]
        self._semantic.longest = max(present, key=len)
        self._draw(self._semantic, image, sample, file)

    def _draw(
        self, visualizer: Any, image: np.ndarray, sample: Any, file: Path, **kwargs: Any
    ) -> None:
        rgb = np.ascontiguousarray(image[..., ::-1])
        visualizer.add_datasample(
            file.stem, rgb, sample, draw_gt=False, out_file=str(file), **kwargs
        )

    @cached_property
    def _horizontal(self) -> Any:
        from mmdet.visualization import DetLocalVisualizer

        return self._with_meta(DetLocalVisualizer())

    @cached_property
    def _rotated(self) -> Any:
        from mmrotate.visualization import RotLocalVisualizer

        return self._with_meta(RotLocalVisualizer())

    @cached_property
    def _semantic(self) -> Any:
        from mmseg.visualization import SegLocalVisualizer

        class Visualizer(SegLocalVisualizer):
            longest = ''  # name in the picture

            def _get_center_loc(self, mask: np.ndarray) -> np.ndarray:
                """Where to write the name of a class: in the middle of its longest row, and so
                that it is not cut off. The stock one sorts all pixels in a Python list, minutes
                for a photograph."""
                y = mask.sum(axis=1).argmax()
                row = np.flatnonzero(mask[y])
                scale = min(mask.shape) / 500
                (width, height), baseline = cv2.getTextSize(self.longest, FONT, scale, 2)
                end = np.array(mask.shape[::-1]) - (width, height) - baseline
                return np.array([row[len(row) // 2], y]).clip(0, end.clip(0))

        return self._with_meta(Visualizer(alpha=OF_MASKS))

    def _with_meta(self, visualizer: Any) -> Any:
        visualizer.dataset_meta = self.meta
        return visualizer


def enlarge(image: np.ndarray) -> tuple[np.ndarray, int]:
    """A picture (H, W, C) times the whole number that makes a small one legible, and the number."""
    height, width = image.shape[:2]
    factor = math.ceil(LEAST_SIDE / max(height, width))
    if factor > 1:
        size = (width * factor, height * factor)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return image, factor


def write_png(file: Path, image: np.ndarray) -> None:
    """Write a picture (H, W, 3), BGR, or labels (H, W); a path of any letters, on any system."""
    file.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _enlarge_instances(found: InstanceData, factor: int) -> InstanceData:
    boxes = found.bboxes * factor
    if boxes.shape[1] == 5:
        boxes[:, 4] = found.bboxes[:, 4]  # the angle
    enlarged = InstanceData(bboxes=boxes, labels=found.labels, scores=found.scores)
    if 'masks' in found:
        enlarged.masks = found.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return enlarged
