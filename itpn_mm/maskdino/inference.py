"""From predictions of an image to its segmentation (MaskDINO, and MaskFormer for classes).

Logits of masks (M, H, W) are of the size that is wanted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.06  # sharpens independent class scores where masks of all queries are summed


def class_scores(cls_logits: Tensor, no_object: bool, temperature: float | None = None) -> Tensor:
    """Logits (..., K) or (..., K + 1) -> scores (..., K) by which masks compete for a pixel.

    Args:
        cls_logits: With a logit for "no object", a softmax is taken, else sigmoids.
        no_object: Whether there is one.
        temperature: Softmax over the sigmoids divided by it; `None` for the sigmoids.
    """
    if no_object:
        return cls_logits.softmax(-1)[..., :-1]
    scores = cls_logits.sigmoid()
    return scores if temperature is None else (scores / temperature).softmax(-1)


def segment_classes(scores: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores (B, M, K) and masks (B, M, H, W) -> score of each class at each pixel (B, K, H, W)."""
    return torch.einsum('bmk,bmhw->bkhw', scores, mask_logits.sigmoid())


def best_instances(
    cls_logits: Tensor, no_object: bool, max_per_image: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and queries (n,) of the best pairs of query and class, the best first."""
    scores = cls_logits.softmax(-1)[:, :-1] if no_object else cls_logits.sigmoid()
    num_classes = scores.shape[1]
    best, index = scores.flatten().topk(min(max_per_image, scores.numel()))
    return best, index % num_classes, index // num_classes


def mask_quality(mask_logits: Tensor) -> Tensor:
    """(n, H, W) -> (n,): mean probability inside a mask, 0 for an empty one."""
    inside = mask_logits > 0
    total = (mask_logits.sigmoid() * inside).flatten(1).sum(1)
    return total / (inside.flatten(1).sum(1) + 1e-6)


def segment_all(
    cls_logits: Tensor,
    mask_logits: Tensor,
    no_object: bool,
    num_things: int,
    object_mask_thr: float = 0.25,
    iou_thr: float = 0.8,
    temperature: float | None = TEMPERATURE,
) -> tuple[Tensor, list[int]]:
    """Panoptic segmentation.

    Args:
        cls_logits: (M, K) or (M, K + 1).
        mask_logits: (M, H, W).
        no_object: There is a logit for "no object".
        num_things: The first of the classes that have single objects; regions of another class are
            one segment.
        object_mask_thr: Queries below this score take no part.
        iou_thr: A segment is dropped where less than this part of its mask is left to it.
        temperature: See :func:`class_scores`.

    Returns:
        Segment of each pixel (H, W), from 1, with 0 for none, and the label of each segment.
    """
    segments = torch.zeros(mask_logits.shape[-2:], dtype=torch.long, device=mask_logits.device)
    labels: list[int] = []
    confident = class_scores(cls_logits, no_object).max(-1).values > object_mask_thr
    if no_object:
        confident &= cls_logits.argmax(-1) < cls_logits.shape[-1] - 1
    if not confident.any():
        return segments, labels
    scores, classes = class_scores(cls_logits[confident], no_object, temperature).max(-1)
    masks = mask_logits[confident].sigmoid()
    winner = (scores[:, None, None] * masks).argmax(0)
    whole = masks >= 0.5
    owned = winner == torch.arange(len(masks), device=masks.device)[:, None, None]
    left = owned.flatten(1).sum(1) >= iou_thr * whole.flatten(1).sum(1)
    seen = (owned & whole).flatten(1).any(1)
    merged: dict[int, int] = {}
    for index in (left & seen).nonzero()[:, 0].tolist():
        label = int(classes[index])
        segment = merged.get(label)
        if segment is None:
            labels.append(label)
            segment = len(labels)
            if label >= num_things:
                merged[label] = segment
        segments[owned[index] & whole[index]] = segment
    return segments, labels


def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, M, H, W) bilinearly; nothing happens where it has the size."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, tuple(size), mode='bilinear', align_corners=False)
