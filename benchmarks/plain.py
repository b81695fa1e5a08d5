"""HiViT and the Transformer pyramid as the formulas read: the yardstick of `tools/benchmark.py`.

Every tensor of stages 1 and 2 and of the pyramid has the layout (B, N, h, w, C): N patches of 16x16
pixels, each with its own h x w grid of sub-tokens, which is how the papers describe them. Attention
is softmax(q k^T) v with the N x N matrix, nothing is fused. Parameter names are those of `itpn_mm`,
so that one state dict fits both. Drop path and dropout are left out: inference only. The pyramid
also follows the plain Fast-iTPN, whose maps it takes as one large patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last dimension."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.act = nn.GELU()
        self.fc2 = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention with the whole attention matrix; logits and softmax in float32."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (b, heads, n, c / heads)
        q = q * self.scale
        attention = (q @ k.transpose(-2, -1)).float()
        attention = attention.softmax(dim=-1).to(v.dtype)
        x = (attention @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


class MlpBlock(nn.Module):
    """Block of stages 1 and 2 and of the pyramid: no attention, sub-tokens do not meet."""

    def __init__(self, dim: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x + self.mlp(self.norm2(x))


class AttentionBlock(nn.Module):
    """Block of stage 3."""

    def __init__(self, dim: int, num_heads: int, ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """4x4 convolution with stride 4, regrouped: a 16x16 patch is a token with a 4x4 inner grid."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, img: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, 4, 4, C)."""
        x = self.proj(img)
        b, c, h, w = x.shape
        x = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1)  # (b, hp, wp, 4, 4, c)
        return self.norm(x.reshape(b, -1, 4, 4, c))


class PatchMerge(nn.Module):
    """2x2 sub-tokens become one with twice the channels."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, h, w, C) -> (B, N, h / 2, w / 2, 2C)."""
        corners = [x[:, :, row::2, col::2] for col in (0, 1) for row in (0, 1)]  # rows vary fastest
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class PatchSplit(nn.Module):
    """One sub-token becomes 2x2."""

    def __init__(self, dim: int, out_dim: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.expand = nn.Linear(dim, 4 * out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, h, w, C) -> (B, N, 2h, 2w, out_dim)."""
        b, n, h, w, _ = x.shape
        x = self.expand(self.norm(x)).reshape(b, n, h, w, 2, 2, -1)
        return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(b, n, 2 * h, 2 * w, -1)


class PlainHiViT(nn.Module):
    """The trunk: token features of the three stages.

    Shapes (B, N, 4, 4, E / 4), (B, N, 2, 2, E / 2) and (B, N, 1, 1, E).
    """

    def __init__(
        self,
        *,
        embed_dims: int,
        depths: Sequence[int],
        num_heads: int,
        img_size: int = 224,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        dims = (embed_dims // 4, embed_dims // 2, embed_dims)
        self.patch_embed = PatchEmbed(dims[0], eps)
        self.pos_embed = nn.Parameter(torch.zeros(1, (img_size // 16) ** 2, embed_dims))
        stages = [
            nn.ModuleList(MlpBlock(dim, stem_mlp_ratio, eps) for _ in range(depth))
            for dim, depth in zip(dims[:2], depths[:2])
        ]
        stages.append(
            nn.ModuleList(
                AttentionBlock(embed_dims, num_heads, mlp_ratio, eps) for _ in range(depths[2])
            )
        )
        self.stages = nn.ModuleList(stages)
        self.merges = nn.ModuleList(PatchMerge(dim, eps) for dim in dims[:2])

    def position(self, hp: int, wp: int) -> Tensor:
        """Position table for a grid of hp x wp patches, (1, hp * wp, E).

        The released models sample the table with scale factors of a grid that is 0.1 larger.
        """
        table = self.pos_embed
        side = int(table.shape[1] ** 0.5)
        if hp == wp == side:
            return table
        table = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((hp + 0.1) / side, (wp + 0.1) / side)
        table = F.interpolate(table, scale_factor=scale, mode='bicubic')
        return table.permute(0, 2, 3, 1).reshape(1, hp * wp, -1)

    def forward(self, img: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """(B, 3, H, W) -> the token features of stages 1, 2, 3, and the grid of patches."""
        grid = (img.shape[2] // 16, img.shape[3] // 16)
        x = self.patch_embed(img)
        features = []
        for stage, merge in zip(self.stages[:2], self.merges):
            for block in stage:
                x = block(x)
            features.append(x)
            x = merge(x)
        x = x[:, :, 0, 0] + self.position(*grid)
        for block in self.stages[2]:
            x = block(x)
        return [*features, x[:, :, None, None]], grid


class PlainPyramid(nn.Module):
    """Coarse to fine: split, add the projected trunk feature, MLP blocks; one more per output."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        depth: int,
        bias: bool = False,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        c4, c8, c16 = in_channels
        self.laterals = nn.ModuleDict(
            dict(
                p8=nn.Linear(c8, out_channels, bias=bias),
                p4=nn.Linear(c4, out_channels, bias=bias),
            )
        )
        if c16 != out_channels:
            self.laterals['p16'] = nn.Linear(c16, out_channels)
        self.splits = nn.ModuleDict(
            dict(
                p8=PatchSplit(c16, out_channels, bias, eps),
                p4=PatchSplit(out_channels, out_channels, bias, eps),
            )
        )
        self.blocks = nn.ModuleDict(
            {
                level: nn.Sequential(
                    *(MlpBlock(out_channels, mlp_ratio, eps) for _ in range(depth))
                )
                for level in ('p8', 'p4')
            }
        )
        self.outputs = nn.ModuleDict(
            {level: MlpBlock(out_channels, mlp_ratio, eps) for level in ('p16', 'p8', 'p4')}
        )

    def forward(self, u4: Tensor, u8: Tensor, u16: Tensor) -> list[Tensor]:
        """Token features of stages 1, 2, 3 -> those of strides 4, 8, 16, all of `out_channels`."""
        v16 = self.laterals['p16'](u16) if 'p16' in self.laterals else u16
        v8 = self.blocks['p8'](self.splits['p8'](u16) + self.laterals['p8'](u8))
        v4 = self.blocks['p4'](self.splits['p4'](v8) + self.laterals['p4'](u4))
        return [self.outputs['p4'](v4), self.outputs['p8'](v8), self.outputs['p16'](v16)]


def tokens_to_map(x: Tensor, hp: int, wp: int) -> Tensor:
    """(B, hp * wp, h, w, C) -> (B, C, hp * h, wp * w)."""
    b, _, h, w, c = x.shape
    x = x.reshape(b, hp, wp, h, w, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, hp * h, wp * w)


class PlainModel(nn.Module):
    """A plain backbone alone, or with the pyramid that gives maps at strides 4, 8, 16, 32, 64.

    Args:
        backbone: Gives the features of stages 1, 2, 3 as (B, N, h, w, C), and the grid of the N.
        neck: The pyramid, or nothing.
    """

    def __init__(self, backbone: nn.Module, neck: PlainPyramid | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W), both multiples of 16 -> maps (B, C, H / s, W / s)."""
        height, width = img.shape[2:]
        if height % 16 or width % 16:
            raise ValueError(f'`img` sides must be multiples of 16: {height}x{width}')
        levels, grid = self.backbone(img)
        if self.neck is None:
            return tuple(tokens_to_map(level, *grid) for level in levels)
        maps = [tokens_to_map(level, *grid) for level in self.neck(*levels)]
        for _ in range(2):
            maps.append(F.avg_pool2d(maps[-1], kernel_size=2, stride=2))
        return tuple(maps)
