"""Position embeddings and relative position biases, and how they change size.

Letters: h, w the grid of patches, L = h * w, V kept tokens, D channels. Height comes before width.
"""

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenGrid:
    """Where the tokens of a sequence lie: an h x w grid, all of it or the tokens ``keep`` (B, V).

    Lives for one forward pass; what the blocks of that pass share (the index of relative positions)
    is computed once.
    """

    def __init__(
        self,
        height: int,
        width: int,
        keep: Tensor | None = None,
        device: torch.device | None = None,
    ):
        self.height, self.width, self.keep = height, width, keep
        self.device = device if keep is None else keep.device

    @cached_property
    def rows(self) -> Tensor:
        """Row of each token: (1, L) or (B, V)."""
        return self._ids // self.width

    @cached_property
    def cols(self) -> Tensor:
        """Column of each token: (1, L) or (B, V)."""
        return self._ids % self.width

    @property
    def _ids(self) -> Tensor:
        if self.keep is not None:
            return self.keep
        return torch.arange(self.height * self.width, device=self.device).unsqueeze(0)

    @cached_property
    def relative_index(self) -> Tensor:
        """Row of the joint table for each (query, key): (1, L, L) or (B, V, V)."""
        dy = self.rows.unsqueeze(2) - self.rows.unsqueeze(1) + self.height - 1
        dx = self.cols.unsqueeze(2) - self.cols.unsqueeze(1) + self.width - 1
        return dy * (2 * self.width - 1) + dx


def sincos_pos_embed(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed two-dimensional sine-cosine embedding (as MAE): (1, h * w, D).

    The first half of the channels encodes the column, the second the row; each half is [sin | cos]
    of the index times 10000^(-k / (D / 4)).

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(
            f'`dim` of a sine-cosine position embedding must be a multiple of 4, but got {dim}'
        )
    h, w = grid
    freq = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def encode(n: int) -> Tensor:
        angle = torch.arange(n, dtype=torch.float64)[:, None] * freq
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (n, dim / 2)

    cols = encode(w)[None].expand(h, w, -1)
    rows = encode(h)[:, None].expand(h, w, -1)
    return torch.cat([cols, rows], dim=2).reshape(1, h * w, dim).float()


def _interpolate(x: Tensor, mode: str, **kwargs) -> Tensor:
    """``F.interpolate`` in at least float32 (half precision would lose the small offsets); the
    dtype is restored.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.interpolate(wide, mode=mode, align_corners=False, **kwargs).to(x.dtype)


def resize_pos_embed(
    pos_embed: Tensor, src_grid: tuple[int, int], dst_grid: tuple[int, int], offset: float = 0.0
) -> Tensor:
    """Resample a position embedding by bicubic interpolation: (1, h * w, D) -> (1, h' * w', D).

    Args:
        pos_embed: Embedding (1, h * w, D), row-major.
        src_grid: Its grid (h, w).
        dst_grid: The wanted grid (h', w'); the embedding is returned as it is when the two are
            equal.
        offset: DINOv2's ``interpolate_offset``. If not 0, samples lie where the scale factors
            ``(h' + offset) / h``, ``(w' + offset) / w`` put them, as in the released iTPN models
            (0.1); if 0, the target size decides.
    """
    if src_grid == dst_grid:
        return pos_embed
    x = pos_embed.unflatten(1, src_grid).permute(0, 3, 1, 2)
    if offset:
        scale = tuple((new + offset) / old for new, old in zip(dst_grid, src_grid, strict=True))
        x = _interpolate(x, 'bicubic', scale_factor=scale)
    else:
        x = _interpolate(x, 'bicubic', size=dst_grid)
    return x.flatten(2).transpose(1, 2)


def resize_rel_pos_table(
    table: Tensor, src_window: tuple[int, int], dst_window: tuple[int, int]
) -> Tensor:
    """Resample a joint relative position table by bicubic interpolation.

    ((2h - 1) * (2w - 1), heads) -> ((2h' - 1) * (2w' - 1), heads), for windows (h, w) and (h', w').
    """
    if src_window == dst_window:
        return table
    src, dst = (tuple(2 * n - 1 for n in window) for window in (src_window, dst_window))
    x = table.t().unflatten(1, src).unsqueeze(0)  # (1, heads, 2h - 1, 2w - 1)
    return _interpolate(x, 'bicubic', size=dst)[0].flatten(1).t()


def resize_rel_pos_1d(table: Tensor, size: int) -> Tensor:
    """Resample a one-dimensional table linearly (ViTDet): (2 * n - 1, D) -> (2 * size - 1, D)."""
    if table.shape[0] == 2 * size - 1:
        return table
    return _interpolate(table.t().unsqueeze(0), 'linear', size=2 * size - 1)[0].t()


class RelativePositionBias(nn.Module):
    """Bias from a joint table over (row, column) differences (Swin, BEiT): gives (B or 1, heads, L,
    L).

    Args:
        window: Grid (h, w) the table is made for; it is resampled for any other grid.
        num_heads: Number of heads.
    """

    def __init__(self, window: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), num_heads))

    def forward(self, q: Tensor, tokens: TokenGrid) -> Tensor:
        table = resize_rel_pos_table(self.table, self.window, (tokens.height, tokens.width))
        return table.to(q.dtype)[tokens.relative_index].permute(0, 3, 1, 2)


class DecomposedRelativePosition(nn.Module):
    """Bias q . R_row + q . R_column with the unscaled query (MViTv2, ViTDet): gives (B, heads, L,
    L).

    Args:
        size: Side of the grid that the two tables are made for; they are resampled for any other.
        head_dim: Channels of one head.
    """

    def __init__(self, size: int, head_dim: int) -> None:
        super().__init__()
        self.table_h = nn.Parameter(torch.zeros(2 * size - 1, head_dim))
        self.table_w = nn.Parameter(torch.zeros(2 * size - 1, head_dim))

    @staticmethod
    def _along(q: Tensor, table: Tensor, index: Tensor, size: int) -> Tensor:
        """Bias of each query for each of the ``size`` rows (or columns): (B, heads, L, size)."""
        logits = q @ resize_rel_pos_1d(table, size).to(q.dtype).t()  # (b, heads, l, 2 * size - 1)
        difference = index.unsqueeze(-1) - torch.arange(size, device=index.device) + size - 1
        return logits.gather(-1, difference.unsqueeze(1).expand(*q.shape[:3], size))

    def forward(self, q: Tensor, tokens: TokenGrid) -> Tensor:
        by_row = self._along(q, self.table_h, tokens.rows, tokens.height)
        by_col = self._along(q, self.table_w, tokens.cols, tokens.width)
        if tokens.keep is None:
            return (by_row.unsqueeze(-1) + by_col.unsqueeze(-2)).flatten(-2)
        shape = (*q.shape[:3], q.shape[2])
        rows, cols = (index[:, None, None].expand(shape) for index in (tokens.rows, tokens.cols))
        return by_row.gather(-1, rows) + by_col.gather(-1, cols)
