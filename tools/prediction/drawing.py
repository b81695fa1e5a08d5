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
from scipy.ndimage import find_objects

from .results import is_rotated

LEAST_SIDE = 640  # pixels: names and scores do not fit into less
GOLDEN = 0.618034  # steps of the golden section fall far apart
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

    def draw_segments(
        self,
        image: np.ndarray,
        numbers: np.ndarray,
        segments: Sequence[dict[str, Any]],
        file: Path,
    ) -> None:
        """Write segments over a picture (H, W, 3), BGR, as PNG: objects with a white outline.

        Args:
            image: The picture.
            numbers: Which segment each pixel belongs to (H, W), 0 for none.
            segments: Number, class and kind of each, see
                :func:`prediction.results.select_segments`.
            file: Where to.
        """
        image, factor = enlarge(image)
        numbers = numbers.repeat(factor, 0).repeat(factor, 1)
        colours = np.zeros((len(segments) + 1, 3))
        for segment in segments:
            colour = np.array(self.meta['palette'][segment['class_id']][::-1])
            if segment['isthing']:  # objects of a class in shades of its colour
                shade = segment['id'] * GOLDEN % 1
                colour = colour * (0.7 + 0.3 * shade) + 75 * (1 - shade)
            colours[segment['id']] = colour
        opacity = OF_MASKS * (numbers > 0)[..., None]
        image = (image * (1 - opacity) + colours[numbers] * opacity).round().astype(np.uint8)
        width = max(1, round(max(image.shape[:2]) / 600))
        places = find_objects(numbers)
        for segment, place in zip(segments, places, strict=True):
            if segment['isthing']:
                mask = (numbers[place] == segment['id']).astype(np.uint8)
                lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
                offset = (place[1].start, place[0].start)
                cv2.drawContours(image, lines, -1, (255, 255, 255), width, offset=offset)
        for segment, place in zip(segments, places, strict=True):
            mask = numbers[place] == segment['id']
            name = self.meta['classes'][segment['class_id']]
            _write_name(image, name, mask, (place[1].start, place[0].start))
        write_png(file, image)

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


def _write_name(image: np.ndarray, name: str, mask: np.ndarray, offset: tuple[int, int]) -> None:
    """Write a name in the middle of the longest row of a mask, unless it is too small for it."""
    scale = max(image.shape[:2]) / 1600 + 0.1
    (width, height), baseline = cv2.getTextSize(name, FONT, scale, 1)
    rows = mask.sum(axis=1)
    if rows.max() < width / 2 or mask.shape[0] < height / 2:
        return
    longest = np.flatnonzero(rows == rows.max())
    y = int(longest[len(longest) // 2])
    row = np.flatnonzero(mask[y])
    x = offset[0] + int(row[len(row) // 2]) - width // 2
    y = offset[1] + y + height // 2
    x = min(max(x, 0), max(image.shape[1] - width, 0))
    y = min(max(y, height), max(image.shape[0] - baseline, height))
    cv2.rectangle(image, (x - 2, y - height - 2), (x + width + 2, y + baseline), (0, 0, 0), -1)
    cv2.putText(image, name, (x, y), FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)


def _enlarge_instances(found: InstanceData, factor: int) -> InstanceData:
    boxes = found.bboxes * factor
    if boxes.shape[1] == 5:
        boxes[:, 4] = found.bboxes[:, 4]  # the angle
    enlarged = InstanceData(bboxes=boxes, labels=found.labels, scores=found.scores)
    if 'masks' in found:
        enlarged.masks = found.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return enlarged
