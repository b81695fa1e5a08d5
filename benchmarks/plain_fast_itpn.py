"""Fast-iTPN as its description reads: the yardstick of `tools/benchmark.py` for `FastiTPN`.

Stages 1 and 2 are 1x1 and 2x2 convolutions on (B, C, H, W) maps, with a permute to and from
channels-last around each LayerNorm. Attention has three projections and the N x N matrix; SwiGLU
has a gate and a value of their own. Nothing is fused, and nothing is slowed down on purpose. Drop
path and dropout are left out: inference only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvMlp(nn.Module):
    """1x1 convolution, GELU, LayerNorm of the hidden channels (sub-LN), 1x1 convolution."""

    def __init__(self, dim: int, ratio: float, eps: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.act = nn.GELU()
        self.norm = ChannelNorm(hidden, eps=eps)
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.fc2(self.norm(self.act(self.fc1(x))))


class ConvBlock(nn.Module):
    """Block of stages 1 and 2."""

    def __init__(self, dim: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.norm2 = ChannelNorm(dim, eps=eps)
        self.mlp = ConvMlp(dim, ratio, eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.mlp(self.norm2(x))


class ConvMerge(nn.Module):
    """LayerNorm, then a 2x2 convolution with stride 2."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, eps=eps)
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2C, H / 2, W / 2)."""
        return self.reduction(self.norm(x))


class Attention(nn.Module):
    """Queries, keys (without a bias) and values from three projections; softmax in float32."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        b, n, c = x.shape
        q, k, v = (
            layer(x).reshape(b, n, self.num_heads, -1).permute(0, 2, 1, 3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )  # 3 x (b, heads, n, c / heads)
        attention = (q * self.scale @ k.transpose(-2, -1)).float()
        attention = attention.softmax(dim=-1).to(v.dtype)
        x = (attention @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


class SwiGLU(nn.Module):
    """w3(LayerNorm(SiLU(w1 x) * w2 x))."""

    def __init__(self, dim: int, ratio: float, eps: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.act = nn.SiLU()
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.w3(self.norm(self.act(self.w1(x)) * self.w2(x)))


class AttentionBlock(nn.Module):
    """Block of stage 3, with layer scale."""

    def __init__(self, dim: int, num_heads: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = SwiGLU(dim, ratio, eps)
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class PlainFastiTPN(nn.Module):
    """The trunk: maps at strides 4, 8 and 16."""

    def __init__(
        self,
        *,
        embed_dims: int,
        depths: Sequence[int],
        num_heads: int,
        img_size: int = 224,
        mlp_ratio: float = 3.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        dims = (embed_dims // 4, embed_dims // 2, embed_dims)
        self.patch_embed = nn.Conv2d(3, dims[0], kernel_size=4, stride=4)
        self.pos_embed = nn.Parameter(torch.zeros(1, (img_size // 16) ** 2, embed_dims))
        stages = [
            nn.ModuleList(ConvBlock(dim, mlp_ratio, norm_eps) for _ in range(depth))
            for dim, depth in zip(dims[:2], depths[:2])
        ]
        stages.append(
            nn.ModuleList(
                AttentionBlock(embed_dims, num_heads, mlp_ratio, norm_eps) for _ in range(depths[2])
            )
        )
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(ConvMerge(dim, norm_eps) for dim in dims[:2])

    def position(self, hp: int, wp: int) -> Tensor:
        """Position table for a grid of hp x wp patches, (1, hp * wp, E)."""
        table = self.pos_embed
        side = int(table.shape[1] ** 0.5)
        if hp == wp == side:
            return table
        table = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(hp, wp), mode='bicubic')
        return table.flatten(2).transpose(1, 2)

    def forward(self, img: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """(B, 3, H, W) -> maps of stages 1, 2, 3 as the tokens of one large patch (B, 1, H / s,
        W / s, C), and the grid of that one patch.
        """
        x = self.patch_embed(img)
        maps = []
        for stage, merge in zip(self.stages[:2], self.merges):
            for block in stage:
                x = block(x)
            maps.append(x)
            x = merge(x)
        shape = x.shape
        x = x.flatten(2).transpose(1, 2) + self.position(*shape[2:])
        for block in self.stages[2]:
            x = block(x)
        maps.append(x.transpose(1, 2).reshape(shape))
        return [x.permute(0, 2, 3, 1).unsqueeze(1) for x in maps], (1, 1)


# names in `FastiTPN` -> names here, for what keeps its values
RENAMED = (
    ('patch_embed.proj.', 'patch_embed.'),
    ('.attn.qkv.q_bias', '.attn.q_proj.bias'),
    ('.attn.qkv.v_bias', '.attn.v_proj.bias'),
    ('.ls1.gamma', '.gamma_1'),
    ('.ls2.gamma', '.gamma_2'),
)


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a model with `itpn_mm.FastiTPN` as its `backbone`, in the shapes and names of
    one with `PlainFastiTPN`.
    """
    plain = {}
    for key, value in state.items():
        if not key.startswith('backbone.'):
            plain[key] = value
            continue
        name = key
        for ours, here in RENAMED:
            name = name.replace(ours, here)
        if key.endswith('.reduction.weight'):  # (2c, column, row, c) -> (2c, c, row, column)
            value = value.reshape(len(value), 2, 2, -1).permute(0, 3, 2, 1)
        elif key.endswith('.attn.qkv.weight'):
            for part, weight in zip('qkv', value.chunk(3)):
                plain[key.replace('qkv', f'{part}_proj')] = weight
            continue
        elif key.startswith('backbone.stages.2.') and '.mlp.fc' in key:
            if '.mlp.fc1.' in key:
                plain[key.replace('fc1', 'w1')], plain[key.replace('fc1', 'w2')] = value.chunk(2)
                continue
            name = key.replace('fc2', 'w3')
        elif key.endswith(('.mlp.fc1.weight', '.mlp.fc2.weight')):
            value = value[:, :, None, None]
        plain[name] = value
    return plain
