"""Windows of a grid of tokens, and attention within them (paper, Section 4.2).

Letters: B images, L tokens, E channels, heads x d = E; G gathering and P class tokens, which stand
before the patches of an image in this order.
"""

from dataclasses import dataclass
from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .position import TokenGrid


class WindowGrid:
    """A grid of tokens that is cut evenly into windows of at most ``size`` tokens a side.

    The windows of a grid differ by at most one row and one column, so none is padded. They are
    ordered by shape, largest first: windows of one shape are neighbours in memory and run as one
    batch, and no attention needs a mask.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        size: Longest side of a window; one window has all tokens if the grid is smaller.

    Attributes:
        num_rows, num_cols: Windows along each axis.
        groups: (number of windows, rows, columns) of each shape.
        slots: Rows of the tallest times columns of the widest window.
    """

    def __init__(self, height: int, width: int, size: int) -> None:
        # Numbers for torch.compile too, which may trace with symbols: the plan follows from them.
        height, width = index(height), index(width)
        self.height, self.width, self.size = height, width, size
        self.num_rows, self.num_cols = -(-height // size), -(-width // size)
        rows, cols = _cut(height, self.num_rows), _cut(width, self.num_cols)
        self.slots = rows[0][1] * cols[0][1]
        self.groups = sorted(
            ((m * n, a, b) for m, a in rows for n, b in cols),
            key=lambda group: (-group[1] * group[2], -group[1]),
        )

    def __len__(self) -> int:
        return self.num_rows * self.num_cols

    @property
    def areas(self) -> list[int]:
        """Tokens of a window of each shape."""
        return [rows * cols for _, rows, cols in self.groups]

    def order(self, device: torch.device | None = None) -> Tensor:
        """Row-major grid index of each token, window after window, each row by row: (1, L)."""
        (i, _), (j, _) = self._cells(device)
        place = self.window_order(device).argsort()[i.unsqueeze(1) * self.num_cols + j]
        return place.flatten().argsort(stable=True).unsqueeze(0)

    def window_order(self, device: torch.device | None = None) -> Tensor:
        """Row-major index of each window, in their order: (number of windows,).

        The order of ``groups``, but made on the device: to copy a list there would wait for it.
        """
        window = torch.arange(len(self), device=device)
        rows, cols = (
            (i + 1) * length // count - i * length // count
            for i, length, count in (
                (window // self.num_cols, self.height, self.num_rows),
                (window % self.num_cols, self.width, self.num_cols),
            )
        )
        size = rows * cols * (self.height + 1) + rows  # by area, then by rows
        return size.argsort(descending=True, stable=True)

    def local_index(self, device: torch.device | None = None) -> Tensor:
        """Index of each token of the grid (row-major) in a window of ``size`` x ``size``: (L,)."""
        (_, y), (_, x) = self._cells(device)
        return (y.unsqueeze(1) * self.size + x).flatten()

    def _cells(self, device: torch.device | None) -> list[tuple[Tensor, Tensor]]:
        """Window, and place in the window, of each row and of each column of the grid."""
        cells = []
        for length, count in ((self.height, self.num_rows), (self.width, self.num_cols)):
            i = torch.arange(length, device=device)
            window = ((i + 1) * count - 1) // length
            cells.append((window, i - window * length // count))
        return cells


def _cut(length: int, count: int) -> list[tuple[int, int]]:
    """Number and length of ``count`` parts that differ by at most 1: longer ones, shorter ones."""
    short, num_long = divmod(length, count)
    parts = (num_long, short + 1), (count - num_long, short)
    return [(num, size) for num, size in parts if num]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of queries (B, L, heads, d) to M keys: (B, L, heads, d).

    Args:
        q: Queries.
        k: Keys (B, M, heads, d).
        v: Values (B, M, heads, d).
        bias: What is added to the scaled logits, (B or 1, heads, L, M).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


@dataclass(frozen=True)
class TokenWindows:
    """Who attends to whom in a layer: what stands for :class:`TokenGrid` in accelerated blocks.

    Patches attend to the class token and to the patches of their window; gathering tokens to the
    same keys as those, and the class token to itself and all patches. With ``scale``, all of them
    then attend to the gathering tokens of all windows (Fig. 4, bottom).

    Args:
        groups: Number of windows and tokens of each, in the order of the patches; one group of one
            window is global attention.
        num_prefix: Class tokens P.
        num_gathering: Gathering tokens G, the same number for each window, in their order.
        grids: Where the patches of a group lie, for relative positions: ``keep`` is (1, length) or
            (B * number of windows, length).
        biases: Biases of the groups that all blocks share, see :meth:`share`.
        prefix_bias: The same of the class token.
        scale: Scale of what comes from the gathering tokens, on (B, rows, E).
        cross_bias: Bias (1, heads, G + P + patches, G) of the attention to them.
    """

    groups: tuple[tuple[int, int], ...]
    num_prefix: int = 0
    num_gathering: int = 0
    grids: tuple[TokenGrid, ...] = ()
    biases: tuple[Tensor, ...] | None = None
    prefix_bias: Tensor | None = None
    scale: nn.Module | None = None
    cross_bias: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rel_pos: nn.Module | None) -> Tensor:
        """Attention of one layer: (B, G + P + patches, heads, d) each -> (B, G + P + patches, E).

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            rel_pos: Relative position of the block itself.
        """
        biases, prefix_bias = self.biases or [None] * len(self.groups), self.prefix_bias
        if rel_pos is not None:
            biases, prefix_bias = self._make_biases(q, rel_pos)
        num_other = self.num_gathering + self.num_prefix
        parts = (self.num_gathering, self.num_prefix, q.shape[1] - num_other)
        q_gathering, q_prefix, q_patches = q.split(parts, dim=1)
        k_gathering, k_prefix, k_patches = k.split(parts, dim=1)
        v_gathering, v_prefix, v_patches = v.split(parts, dim=1)

        nums = [num for num, _ in self.groups]
        sizes = [num * length for num, length in self.groups]
        per_window = self.num_gathering // sum(nums)
        gathered, mixed = [], []
        for num, bias, qg, qw, kw, vw in zip(
            nums,
            biases,
            q_gathering.split([num * per_window for num in nums], dim=1),
            *(x.split(sizes, dim=1) for x in (q_patches, k_patches, v_patches)),
            strict=True,
        ):
            kw, vw = _fold(kw, num, k_prefix), _fold(vw, num, v_prefix)
            mixed.append(_unfold(attend(_fold(qw, num), kw, vw, bias), q.shape[0]))
            if per_window:
                gathered.append(_unfold(attend(_fold(qg, num), kw, vw), q.shape[0]))
        if self.num_prefix:
            keys, values = k[:, self.num_gathering :], v[:, self.num_gathering :]
            gathered.append(attend(q_prefix, keys, values, prefix_bias))
        rows = gathered + mixed
        out = (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).flatten(2)
        if self.scale is None:
            return out
        return out + self.scale(attend(q, k_gathering, v_gathering, self.cross_bias).flatten(2))

    def share(self, x: Tensor, rel_pos: nn.Module) -> 'TokenWindows':
        """The same with the biases of a relative position that all blocks share.

        They are computed once, before the blocks.

        Args:
            x: Tokens (B, G + P + patches, E).
            rel_pos: Relative position that does not look at queries.
        """
        biases, prefix_bias = self._make_biases(x.unsqueeze(2), rel_pos)
        biases = tuple(bias.contiguous() for bias in biases)
        return self.replace(biases=biases, prefix_bias=prefix_bias)

    def replace(self, **changes: object) -> 'TokenWindows':
        """The same with other values; torch 2.5 does not compile `dataclasses.replace`."""
        values = {name: getattr(self, name) for name in self.__match_args__}
        return TokenWindows(**{**values, **changes})

    def _make_biases(self, q: Tensor, rel_pos: nn.Module) -> tuple[list[Tensor], Tensor | None]:
        """Bias of the patches of each group, and of the class token."""
        start = first = self.num_gathering + self.num_prefix
        knows_prefix = bool(self.num_prefix and getattr(rel_pos, 'num_extra', 0))
        biases = []
        for (num, length), grid in zip(self.groups, self.grids, strict=True):
            queries = _fold(q[:, start : start + num * length], num).transpose(1, 2)
            bias = rel_pos(queries, grid)
            if knows_prefix:
                bias = bias[:, :, self.num_prefix :]
            elif self.num_prefix:
                bias = F.pad(bias, (self.num_prefix, 0))
            biases.append(bias)
            start += num * length
        if not knows_prefix:
            return biases, None
        # The bias of a class token does not depend on where a patch lies, so one patch tells it.
        grid = self.grids[0]
        patch = grid.keep.new_zeros(1, 1)
        bias = rel_pos(q[:, :1].transpose(1, 2), TokenGrid(grid.height, grid.width, patch))
        own, to_patch = bias[:, :, :1].split(1, dim=3)
        return biases, torch.cat([own, to_patch.expand(-1, -1, -1, start - first)], dim=3)


def _fold(x: Tensor, num: int, prefix: Tensor | None = None) -> Tensor:
    """Windows become images: (B, num * length, heads, d) -> (B * num, P + length, heads, d).

    Each has the tokens ``prefix`` (B, P, heads, d) of its image before it.
    """
    x = x.unflatten(1, (num, -1))
    if prefix is not None and prefix.shape[1]:
        x = torch.cat([prefix.unsqueeze(1).expand(-1, num, -1, -1, -1), x], dim=2)
    return x.flatten(0, 1)


def _unfold(x: Tensor, b: int) -> Tensor:
    """Images again: (B * num, length, heads, d) -> (B, num * length, heads, d)."""
    return x.unflatten(0, (b, -1)).flatten(1, 2)
