"""Masks at points instead of all pixels, as in PointRend.

Points are x and y as fractions of what is sampled; values between centres of pixels are bilinear,
and what lies outside counts as 0.
"""

import torch
from mmcv.ops import point_sample
from torch import Tensor


def sample_masks(masks: Tensor, owners: Tensor, points: Tensor) -> Tensor:
    """Sample masks at points, each with points of its own.

    Masks are converted to floating point once, and not for each set of points.

    Args:
        masks: (n, H, W) of bool.
        owners: (P,), the mask that points belong to.
        points: (P, K, 2).

    Returns:
        (P, K), between 0 and 1.
    """
    out = points.new_zeros(points.shape[:2])
    if not len(owners):
        return out
    order = owners.argsort(stable=True)
    counts = torch.bincount(owners, minlength=len(masks))
    rank = torch.arange(len(owners), device=owners.device)
    rank = rank - (counts.cumsum(0) - counts)[owners[order]]
    # row (mask, rank) of a table; masks with fewer sets of points leave places of it empty
    table = points.new_zeros((len(masks), int(counts.max()), *points.shape[1:]))
    table[owners[order], rank] = points[order]
    values = point_sample(masks[:, None].to(points.dtype), table.flatten(1, 2))[:, 0]
    out[order] = values.unflatten(1, table.shape[1:3])[owners[order], rank]
    return out


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    ratios: Tensor | None = None,
) -> Tensor:
    """Draw points for the masks of an image, most where each is least certain (PointRend, 3.1).

    The masks choose out of the same points.

    Args:
        logits: (P, H, W), of masks in the padded batch.
        num_points: Points K of each mask.
        oversample_ratio: How many times more points to choose from.
        importance_sample_ratio: Part of the points that are chosen; the others are not.
        ratios: (1, 2), part of `logits` that is image.

    Returns:
        (P, K, 2), as fractions of the image.
    """
    count = int(importance_sample_ratio * num_points)
    candidates = torch.rand(1, int(oversample_ratio * num_points), 2, device=logits.device)
    others = torch.rand(1, num_points - count, 2, device=logits.device)
    certainty = point_sample(logits[None], place(candidates, ratios))[0].abs()
    best = certainty.topk(count, largest=False, sorted=False).indices
    return torch.cat((candidates[0, best], others.expand(len(logits), -1, -1)), 1)


def place(points: Tensor, ratios: Tensor | None) -> Tensor:
    """Points (P, K, 2) as fractions of the image -> as fractions of the padded batch."""
    return points if ratios is None else points * ratios[:, None]
