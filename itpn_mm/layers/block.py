"""Residual blocks and what stands on their branches."""

import torch
from torch import Tensor, nn

from .attention import Attention
from .linear import is_eager_cpu_inference
from .mlp import Mlp, SwiGLU
from .position import TokenGrid
from .windows import TokenWindows

# Tokens that a block takes at a time where nothing is kept for a backward pass: the hidden layer
# of a slice stays in the cache, and its memory is used again by the next.
SLICE_TOKENS = 2048


class DropPath(nn.Module):
    """Stochastic depth: drop the branch of an image with probability ``rate``, scale the others.

    The first axis must be images (not patches), so that an image keeps or loses the branch as a
    whole.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3g}'


class LayerScale(nn.Module):
    """Learned scale of each channel of a branch (CaiT)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def _scale(dim: int, init_value: float | None) -> nn.Module:
    return nn.Identity() if init_value is None else LayerScale(dim, init_value)


class MlpBlock(nn.Module):
    """Residual channel MLP, the block of stages 1 and 2 and of the pyramid.

    Position by position: (..., C) -> (..., C).

    Args:
        dim: Channels C.
        mlp_ratio: Channels of the hidden layer over C.
        layer_scale_init_value: Initial value of layer scale; ``None`` for no layer scale.
        drop_rate: Dropout in the MLP.
        drop_path_rate: Stochastic depth of the block.
        norm_eps: Epsilon of the LayerNorms.
        sub_norm: Whether the MLP normalises its hidden layer (Fast-iTPN).
        swiglu: Whether the MLP is gated, :class:`SwiGLU` (Fast-iTPN).
    """

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        layer_scale_init_value: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        sub_norm: bool = False,
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        mlp = SwiGLU if swiglu else Mlp
        self.mlp = mlp(dim, int(dim * mlp_ratio), drop_rate, sub_norm, norm_eps)
        self.ls2 = _scale(dim, layer_scale_init_value)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and is_eager_cpu_inference(x):
            out = torch.empty(x.shape, dtype=x.dtype)
            slices = (t.flatten(0, -2).split(SLICE_TOKENS) for t in (x, out))
            for tokens, target in zip(*slices, strict=True):
                torch.add(tokens, self._branch(tokens), out=target)
            return out
        return x + self.drop_path(self._branch(x))

    def _branch(self, x: Tensor) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x)))


class AttentionBlock(MlpBlock):
    """Transformer block, the block of stage 3 and of the decoder: (B, L, C) -> (B, L, C).

    Args:
        dim: Channels C.
        num_heads: Number of heads.
        mlp_ratio: Channels of the MLP's hidden layer over C.
        qkv_bias: See :class:`Attention`.
        rel_pos: See :class:`Attention`.
        layer_scale_init_value: Initial value of layer scale; ``None`` for no layer scale.
        drop_rate: Dropout on both branches.
        drop_path_rate: Stochastic depth of both branches.
        norm_eps: Epsilon of the LayerNorms.
        k_bias: See :class:`Attention`.
        sub_norm: See :class:`MlpBlock`.
        swiglu: See :class:`MlpBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool = True,
        rel_pos: nn.Module | None = None,
        layer_scale_init_value: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        k_bias: bool = True,
        sub_norm: bool = False,
        swiglu: bool = False,
    ) -> None:
        super().__init__(
            dim,
            mlp_ratio,
            layer_scale_init_value,
            drop_rate,
            drop_path_rate,
            norm_eps,
            sub_norm,
            swiglu,
        )
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, rel_pos, drop_rate, k_bias)
        self.ls1 = _scale(dim, layer_scale_init_value)

    def forward(
        self, x: Tensor, tokens: TokenGrid | TokenWindows | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Attention.forward` for ``tokens`` and ``bias``."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), tokens, bias)))
        return super().forward(x)

    @torch.no_grad()
    def mean_keys(self, x: Tensor) -> Tensor:
        """Keys of the block's attention for its input, see :meth:`Attention.mean_keys`."""
        return self.attn.mean_keys(self.norm1(x))
