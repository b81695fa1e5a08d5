"""Masks at points instead of all pixels, as in PointRend.

Points are x and y as fractions of what is sampled; values between centres of pixels are bilinear,
and what lies outside counts as 0.
"""

import torch
import torch.nn.functional as F
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
def sample_together(maps: Tensor, points: Tensor) -> Tensor:
    """Sample many maps at the same points, which is one weighted sum of four rows for each point.

    Faster than a grid sample, which looks up each map by itself; without gradients.

    Args:
        maps: (C, H, W).
        points: (K, 2).

    Returns:
        (C, K).
    """
    height, width = maps.shape[-2:]
    corners = points.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    places = points * points.new_tensor([width, height]) - 0.5
    cells = places.floor()[:, None] + corners  # (K, 4, 2)
    weights = (1 - (places[:, None] - cells).abs()).prod(-1)
    x, y = cells.long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    table = maps.flatten(1).T.contiguous()
    found = F.embedding_bag(rows, table, mode='sum', per_sample_weights=weights * inside)
    return found.T.contiguous()


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
    certainty = sample_together(logits, place(candidates, ratios)[0]).abs_()
    best = certainty.topk(count, largest=False, sorted=False).indices
    return torch.cat((candidates[0, best], others.expand(len(logits), -1, -1)), 1)


def place(points: Tensor, ratios: Tensor | None) -> Tensor:
    """Points (P, K, 2) as fractions of the image -> as fractions of the padded batch."""
    return points if ratios is None else points * ratios[:, None]
