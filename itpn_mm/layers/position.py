"""Position embeddings and relative position biases, and how they change size.

Letters: h, w the grid of patches, L = h * w, V kept tokens, D channels. Height comes before width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometric import DECOUPLED_RATIO, resize_matrix

# Rows that a table holds beyond the patches' when there is a class token: the bias from it to the
# patches, from the patches to it, and to itself.
NUM_CLS_ROWS = 3


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
        self._relative_index: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Row of each token: (1, L) or (B, V)."""
        return self._ids // self.width

    @property
    def cols(self) -> Tensor:
        """Column of each token: (1, L) or (B, V)."""
        return self._ids % self.width

    @property
    def _ids(self) -> Tensor:
        if self.keep is not None:
            return self.keep
        return torch.arange(self.height * self.width, device=self.device).unsqueeze(0)

    @property
    def relative_index(self) -> Tensor:
        """Row of the joint table for each (query, key): (1, L, L) or (B, V, V)."""
        if self._relative_index is None:  # `cached_property` would break torch.compile
            rows, cols = self.rows, self.cols
            dy = rows.unsqueeze(2) - rows.unsqueeze(1) + self.height - 1
            dx = cols.unsqueeze(2) - cols.unsqueeze(1) + self.width - 1
            self._relative_index = dy * (2 * self.width - 1) + dx
        return self._relative_index


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
    """``F.interpolate`` in at least float32, where half precision would lose small offsets.

    The dtype is restored.
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
    table: Tensor,
    src_window: tuple[int, int],
    dst_window: tuple[int, int],
    mode: str = 'bicubic',
    num_extra: int = 0,
) -> Tensor:
    """Resample a joint relative position table.

    ((2h - 1) * (2w - 1) + extra, heads) -> ((2h' - 1) * (2w' - 1) + extra, heads), for windows
    (h, w) and (h', w').

    Args:
        table: The table.
        src_window: Its window.
        dst_window: The wanted window.
        mode: ``'bicubic'`` (Swin), or ``'geometric'``: the differences of the table are placed in
            geometric progression, so that near ones keep their values (BEiT).
        num_extra: Rows at the end that are kept as they are.
    """
    if src_window == dst_window:
        return table
    src, dst = (tuple(2 * n - 1 for n in window) for window in (src_window, dst_window))
    body, extra = table.split([table.shape[0] - num_extra, num_extra])
    x = body.t().unflatten(1, src)  # (heads, 2h - 1, 2w - 1)
    if mode == 'bicubic':
        x = _interpolate(x.unsqueeze(0), 'bicubic', size=dst)[0]
    else:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        down, across = (resize_matrix(a, b).to(wide) for a, b in zip(src, dst, strict=True))
        x = (down @ wide @ across.t()).to(x.dtype)
    return torch.cat([x.flatten(1).t(), extra])


def resize_rel_pos_1d(table: Tensor, size: int) -> Tensor:
    """Resample a one-dimensional table linearly (ViTDet): (2 * n - 1, D) -> (2 * size - 1, D)."""
    if table.shape[0] == 2 * size - 1:
        return table
    return _interpolate(table.t().unsqueeze(0), 'linear', size=2 * size - 1)[0].t()


def resize_decoupled_table(table: Tensor, size: int, num_extra: int = 0) -> Tensor:
    """Resample a one-dimensional table in geometric progression, as the Fast-iTPN release does.

    (2 * n - 1 + extra, heads) -> (2 * size - 1 + extra, heads); the last ``num_extra`` rows are
    kept as they are.
    """
    body, extra = table.split([table.shape[0] - num_extra, num_extra])
    if body.shape[0] == 2 * size - 1:
        return table
    matrix = resize_matrix(body.shape[0], 2 * size - 1, DECOUPLED_RATIO)
    wide = body.to(torch.promote_types(body.dtype, torch.float32))
    return torch.cat([(matrix.to(wide) @ wide).to(body.dtype), extra])


def _add_cls(bias: Tensor, rows: Tensor) -> Tensor:
    """Bias (B, heads, L, L) of the patches -> (B, heads, 1 + L, 1 + L) with the class token first.

    ``rows`` (3, heads): see :data:`NUM_CLS_ROWS`.
    """
    b, heads, length, _ = bias.shape
    from_cls, to_cls, own = rows.view(NUM_CLS_ROWS, 1, heads, 1, 1).to(bias.dtype)
    top = torch.cat([own, from_cls.expand(-1, -1, -1, length)], dim=3).expand(b, -1, -1, -1)
    below = torch.cat([to_cls.expand(b, -1, length, -1), bias], dim=3)
    return torch.cat([top, below], dim=2)


class RelativePositionBias(nn.Module):
    """Bias (B or 1, heads, L, L) from a joint table over (row, column) differences (Swin, BEiT).

    Args:
        window: Grid (h, w) the table is made for; it is resampled for any other grid.
        num_heads: Number of heads.
        cls_token: Whether a class token stands before the patches; it has rows of its own, see
            :data:`NUM_CLS_ROWS`.
        resize_mode: ``mode`` of :func:`resize_rel_pos_table`.
    """

    def __init__(
        self,
        window: tuple[int, int],
        num_heads: int,
        cls_token: bool = False,
        resize_mode: str = 'bicubic',
    ) -> None:
        super().__init__()
        self.window, self.resize_mode = window, resize_mode
        self.num_extra = NUM_CLS_ROWS if cls_token else 0
        num_rows = (2 * window[0] - 1) * (2 * window[1] - 1) + self.num_extra
        self.table = nn.Parameter(torch.zeros(num_rows, num_heads))

    def forward(self, q: Tensor, tokens: TokenGrid) -> Tensor:
        grid = (tokens.height, tokens.width)
        table = resize_rel_pos_table(
            self.table, self.window, grid, self.resize_mode, self.num_extra
        ).to(q.dtype)
        bias = table[tokens.relative_index].permute(0, 3, 1, 2)
        return _add_cls(bias, table[-NUM_CLS_ROWS:]) if self.num_extra else bias


class DecoupledRelativePositionBias(nn.Module):
    """Bias (B or 1, heads, L, L) from a table over row and one over column differences (Fast-iTPN).

    Args:
        window: Grid (h, w) the tables are made for; they are resampled for any other grid.
        num_heads: Number of heads.
        cls_token: As of :class:`RelativePositionBias`.
    """

    def __init__(self, window: tuple[int, int], num_heads: int, cls_token: bool = False) -> None:
        super().__init__()
        self.num_extra = NUM_CLS_ROWS if cls_token else 0
        self.table_h, self.table_w = (
            nn.Parameter(torch.zeros(2 * n - 1 + self.num_extra, num_heads)) for n in window
        )

    def forward(self, q: Tensor, tokens: TokenGrid) -> Tensor:
        bias, rows = 0, 0
        for table, index, size in (
            (self.table_h, tokens.rows, tokens.height),
            (self.table_w, tokens.cols, tokens.width),
        ):
            table = resize_decoupled_table(table, size, self.num_extra).to(q.dtype)
            # The reference counts from query to key here, opposite to the joint table.
            difference = index.unsqueeze(1) - index.unsqueeze(2) + size - 1
            bias = bias + table[difference].permute(0, 3, 1, 2)
            rows = rows + table[-NUM_CLS_ROWS:]
        return _add_cls(bias, rows) if self.num_extra else bias


class DecomposedRelativePosition(nn.Module):
    """Bias (B, heads, L, L) = q . R_row + q . R_column, of the unscaled query (MViTv2, ViTDet).

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
