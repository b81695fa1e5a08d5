"""Multi-head self-attention on sequences."""

import torch
from torch import Tensor, nn

from .linear import Linear, linear
from .position import TokenGrid
from .windows import TokenWindows, attend


class QKVLinear(Linear):
    """One GEMM to queries, keys and values (..., C) -> (..., 3 * C), with no bias of the keys.

    A bias of the keys shifts all logits of a query alike, so softmax does not see it (BEiT).
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention over (B, L, C), computed by ``scaled_dot_product_attention``.

    Without a relative position no L x L tensor is ever built.

    Args:
        dim: Channels C, a multiple of ``num_heads``.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have biases.
        rel_pos: Module called with the queries (B, heads, L, C / heads) and the :class:`TokenGrid`;
            gives the bias (B or 1, heads, L, L) added to the scaled logits.
        drop_rate: Dropout after the output projection.
        k_bias: ``False`` leaves out the bias of the keys (Fast-iTPN, as BEiT).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        rel_pos: nn.Module | None = None,
        drop_rate: float = 0.0,
        k_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        if qkv_bias and not k_bias:
            self.qkv = QKVLinear(dim)
        else:
            self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.rel_pos = rel_pos
        self.proj = Linear(dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(
        self, x: Tensor, tokens: TokenGrid | TokenWindows | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Attend within each sequence, or within windows of it: (B, L, C) -> (B, L, C).

        Args:
            x: Sequences.
            tokens: Where on the grid the L tokens lie, needed by ``rel_pos`` only; or
                :class:`TokenWindows`, which tells who attends to whom.
            bias: Bias (B or 1, heads, L, L) that all blocks share, or a boolean mask (True: may
                attend).
        """
        b, length, _ = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.num_heads, -1).unbind(2)
        if isinstance(tokens, TokenWindows):
            x = tokens.attend(q, k, v, self.rel_pos)
        else:
            if self.rel_pos is not None:
                bias = self.rel_pos(q.transpose(1, 2), tokens)
            x = attend(q, k, v, bias).flatten(2)
        return self.drop(self.proj(x))

    @torch.no_grad()
    def mean_keys(self, x: Tensor) -> Tensor:
        """Keys averaged over the heads: (B, L, C) -> (B, L, C / heads), without gradients.

        The mean of the heads' projections is the projection by their mean, which costs
        ``num_heads`` times less.
        """
        weight = self.qkv.weight.chunk(3)[1]
        bias = None if self.qkv.bias is None else self.qkv.bias.chunk(3)[1]
        weight, bias = (
            None if t is None else t.unflatten(0, (self.num_heads, -1)).mean(dim=0)
            for t in (weight, bias)
        )
        return linear(x, weight, bias)
