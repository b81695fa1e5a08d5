"""Predictions of a model in the terms of tools/predict.py: which count, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
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


def to_json(head: dict[str, Any], key: str, items: Sequence[dict[str, Any]]) -> str:
    """JSON of `head` with the list `items` under `key`, each of them on a line of its own."""
    lines = ',\n'.join(json.dumps(item) for item in items)
    return f'{json.dumps(head)[:-1]}, "{key}": [\n{lines}\n]}}\n'


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
