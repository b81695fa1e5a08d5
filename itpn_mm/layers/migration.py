"""Token migration: which tokens leave, and how they come back (paper, Section 4.1)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def choose_leaving(keys: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Choose the tokens of each window that are most like another one (Section 4.1).

    The tokens alternate between two sets, A and B. Those of A with the largest cosine between their
    key and any key of B leave.

    Args:
        keys: Keys (..., L, d) of the L tokens of each window.
        num: Tokens that leave each window, at most ceil(L / 2), which A has.

    Returns:
        Indices, rising, of the tokens that stay (..., L - num) and that leave (..., num).

    Raises:
        ValueError: So many cannot leave.
    """
    length = keys.shape[-2]
    if not 0 <= num <= (length + 1) // 2 or num == length:
        raise ValueError(
            f'`num` must be 0 to {min((length + 1) // 2, length - 1)} for windows of {length} '
            f'tokens, of which half may leave, but got {num}'
        )
    leaves = torch.zeros_like(keys[..., 0], dtype=torch.uint8)
    if num:
        keys = F.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)
        a, b = keys[..., ::2, :], keys[..., 1::2, :]
        # Neighbours are so alike that half precision would not tell them apart.
        with _without_autocast(a.device.type):
            best = (a @ b.transpose(-1, -2)).amax(dim=-1)
        leaves = leaves.scatter(-1, 2 * best.topk(num, dim=-1).indices, 1)
    order = leaves.argsort(dim=-1, stable=True)
    return order[..., : length - num], order[..., length - num :]


def _without_autocast(device: str) -> AbstractContextManager:
    """Autocast off where it is on; elsewhere nothing, which leaves no trace in an export."""
    if device == 'meta' or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, M, C) of sequences (B, L, C) at ``index`` (B or 1, M)."""
    b, length = x.shape[:2]
    start = length * torch.arange(b, device=x.device).unsqueeze(1)
    # Whole rows are copied, where `gather` would take an index for each value.
    rows = (index + start).flatten()
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, (b, -1))


def restore_tokens(values: Sequence[Tensor], ids: Sequence[Tensor]) -> Tensor:
    """Put tokens that left at different times in their places (replenishing).

    Args:
        values: Tokens (B, L_i, C).
        ids: Their places (B or 1, L_i); together, each of 0 to L - 1 once for each image.

    Returns:
        All tokens (B, L, C) in the order of their places.
    """
    b = values[0].shape[0]
    places = torch.cat([index.expand(b, -1) for index in ids], dim=1) if len(ids) > 1 else ids[0]
    x = torch.cat(list(values), dim=1) if len(values) > 1 else values[0]
    return take_tokens(x, places.argsort(dim=1))
