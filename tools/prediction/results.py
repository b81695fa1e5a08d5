"""Predictions of a model in the terms of tools/predict.py: which count, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from scipy.ndimage import find_objects
from torch import Tensor


def select_instances(sample: BaseDataElement, threshold: float) -> InstanceData | None:
    """Objects of a prediction with at least a score, the surest first; None without objects.

    Boxes are tensors, masks are bool tensors (n, H, W).
    """
    if 'pred_instances' not in sample:
        return None
    found = sample.pred_instances
    order = found.scores.argsort(descending=True, stable=True)
    found = found[order[found.scores[order] >= threshold]]
    found.bboxes = getattr(found.bboxes, 'tensor', found.bboxes)
    if 'masks' in found:
        found.masks = torch.as_tensor(found.masks).bool()
    return found


def select_labels(sample: BaseDataElement) -> np.ndarray | None:
    """Class of each pixel (H, W) of a prediction; None without a semantic segmentation."""
    if 'pred_sem_seg' not in sample:
        return None
    pixels = sample.pred_sem_seg
    pixels = pixels.data if 'data' in pixels else pixels.sem_seg  # mmseg, mmdet
    return torch.as_tensor(pixels)[0].numpy().astype(np.int64)


def select_segments(
    sample: BaseDataElement, num_classes: int
) -> tuple[np.ndarray, list[dict[str, Any]]] | None:
    """Segments of a panoptic prediction, the largest first; None without one.

    Args:
        sample: Of mmdet: a pixel's code is its class, and for an object 1000 times its number more.
        num_classes: Of the model; a class beyond them is that of pixels which belong to nothing.

    Returns:
        Number of the segment at each pixel (H, W), from 1, and 0 for no segment; and of each
        segment `id`, `class_id` and whether it is a thing, an object that is counted.
    """
    if 'pred_panoptic_seg' not in sample:
        return None
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    codes = torch.as_tensor(sample.pred_panoptic_seg.sem_seg)[0].numpy().astype(np.int64)
    found, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    order = order[found[order] % INSTANCE_OFFSET < num_classes]
    numbers = np.zeros(len(found), dtype=np.int64)
    numbers[order] = np.arange(1, len(order) + 1)
    segments = [
        dict(
            id=number,
            class_id=int(found[i] % INSTANCE_OFFSET),
            isthing=bool(found[i] >= INSTANCE_OFFSET),
        )
        for number, i in enumerate(order, start=1)
    ]
    return numbers[place].reshape(codes.shape), segments


def is_rotated(boxes: Tensor) -> bool:
    """Whether boxes are (n, 5), centre, size and angle, or (n, 8), corners, and not (n, 4)."""
    return boxes.shape[1] in (5, 8)


def describe_instances(found: InstanceData, names: Sequence[str]) -> list[dict[str, Any]]:
    """Objects as JSON; see docs/inference.md for the keys."""
    described = []
    corners, angles = None, None
    if is_rotated(found.bboxes):
        corners, angles = _corners(found.bboxes)
    for i, label in enumerate(found.labels.tolist()):
        item = dict(label=names[label], class_id=label, score=round(float(found.scores[i]), 4))
        if corners is None:
            ends = found.bboxes[i]
        else:
            ends = torch.cat([corners[i].amin(0), corners[i].amax(0)])
            item['polygon'] = _rounded(corners[i])
            item['angle'] = round(math.degrees(angles[i]), 2)
        item['bbox'] = _rounded(torch.cat([ends[:2], ends[2:] - ends[:2]]))
        if 'masks' in found:
            item['mask'] = encode_mask(found.masks[i].numpy())
        described.append(item)
    return described


def describe_labels(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of a semantic segmentation (H, W) as JSON, the largest first."""
    ids, counts = np.unique(labels, return_counts=True)
    return [
        dict(label=names[i], class_id=i, pixels=count, share=round(count / labels.size, 6))
        for count, i in sorted(zip(counts.tolist(), ids.tolist()), key=lambda pair: -pair[0])
    ]


def describe_segments(
    numbers: np.ndarray, segments: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Segments of :func:`select_segments` as JSON, with the keys of COCO's `segments_info`."""
    areas = np.bincount(numbers.ravel(), minlength=len(segments) + 1)
    described = []
    for segment, (rows, columns) in zip(segments, find_objects(numbers), strict=True):
        area = int(areas[segment['id']])
        described.append(
            dict(
                id=segment['id'],
                label=names[segment['class_id']],
                class_id=segment['class_id'],
                isthing=segment['isthing'],
                area=area,
                share=round(area / numbers.size, 6),
                bbox=[
                    columns.start,
                    rows.start,
                    columns.stop - columns.start,
                    rows.stop - rows.start,
                ],
            )
        )
    return described


def encode_segments(numbers: np.ndarray) -> np.ndarray:
    """Numbers (H, W) as a picture (H, W, 3), blue first: red + 256 green + 256^2 blue."""
    return np.stack([numbers >> shift & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)


def to_json(head: dict[str, Any], lists: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """JSON of `head` with lists by key, each item on a line of its own."""
    text = json.dumps(head)[:-1]
    for key, items in lists.items():
        lines = ',\n'.join(json.dumps(item) for item in items)
        text += f', "{key}": [\n{lines}\n]'
    return text + '}\n'


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as the compressed run lengths of COCO."""
    from pycocotools import mask as coco_mask  # comes with mmdet, and is not needed without masks

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode('ascii'))


def _corners(boxes: Tensor) -> tuple[Tensor, list[float]]:
    """Corners (n, 4, 2) and angles, in radians, of rotated boxes."""
    from mmrotate.structures.bbox import QuadriBoxes, RotatedBoxes

    typed = (RotatedBoxes if boxes.shape[1] == 5 else QuadriBoxes)(boxes)
    corners = typed.convert_to('qbox').tensor.reshape(-1, 4, 2)
    return corners, typed.convert_to('rbox').tensor[:, 4].tolist()


def _rounded(values: Tensor) -> list:
    """Pixels with two decimals, as nested lists."""
    return np.round(values.double().numpy(), 2).tolist()
