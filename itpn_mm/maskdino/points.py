"""Masks at points instead of all pixels, as in PointRend.

Points are x and y as fractions of what is sampled; values between centres of pixels are bilinear,
and what lies outside counts as 0.
"""

import torch
from mmcv.ops import point_sample
from torch import Tensor


def sample_masks(masks: Tensor, owners: Tensor, points: Tensor) -> Tensor:
    """Sample masks of bool without a copy of them in floating point for each set of points.

    Args:
        masks: (n, H, W).
        owners: (P,), the mask that points belong to.
        points: (P, K, 2).

    Returns:
        (P, K), between 0 and 1.
    """
    height, width = masks.shape[-2:]
    flat = masks.flatten()
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()
    out = torch.zeros_like(x)
    for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = left + dx, top + dy
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        value = flat[owners[:, None] * (height * width) + index.long()]
        out += weight * (value & inside)
    return out


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    ratios: Tensor | None = None,
) -> Tensor:
    """Draw points, most of them where a mask is least certain (PointRend, Section 3.1).

    Args:
        logits: (P, 1, H, W), of masks in the padded batch.
        num_points: Points K of each mask.
        oversample_ratio: How many times more points to choose from.
        importance_sample_ratio: Part of the points that are chosen; the others are drawn anew.
        ratios: (P, 2), part of `logits` that is image.

    Returns:
        (P, K, 2), as fractions of the image.
    """
    count = int(importance_sample_ratio * num_points)
    candidates = torch.rand(
        len(logits), int(oversample_ratio * num_points), 2, device=logits.device
    )
    certainty = point_sample(logits, place(candidates, ratios))[:, 0].abs()
    best = certainty.topk(count, largest=False).indices
    chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    others = torch.rand(len(logits), num_points - count, 2, device=logits.device)
    return torch.cat((chosen, others), 1)


def place(points: Tensor, ratios: Tensor | None) -> Tensor:
    """Points (P, K, 2) as fractions of the image -> as fractions of the padded batch."""
    return points if ratios is None else points * ratios[:, None]
