"""Channel MLPs."""

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear


def _sub_norm(dim: int, sub_norm: bool, norm_eps: float) -> nn.Module:
    return nn.LayerNorm(dim, norm_eps) if sub_norm else nn.Identity()


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between: (..., C) -> (..., C).

    Args:
        dim: Channels C.
        hidden_dim: Channels of the hidden layer.
        drop_rate: Dropout after the activation and at the end.
        sub_norm: Whether a LayerNorm follows the activation (sub-LN of Fast-iTPN).
        norm_eps: Its epsilon.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop_rate: float = 0.0,
        sub_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.norm = _sub_norm(hidden_dim, sub_norm, norm_eps)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.norm(self.drop(self.act(self.fc1(x))))))


class SwiGLU(nn.Module):
    """Gated MLP, fc2(SiLU(gate) * value): (..., C) -> (..., C) (Shazeer, arXiv 2002.05202).

    Gate and value come out of one GEMM, ``fc1``, in this order. Arguments as of :class:`Mlp`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        drop_rate: float = 0.0,
        sub_norm: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden_dim)
        self.norm = _sub_norm(hidden_dim, sub_norm, norm_eps)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(self.norm(self.drop(F.silu(gate) * value))))
