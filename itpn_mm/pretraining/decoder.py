"""The pre-training decoders on top of the pyramid; they are thrown away afterwards."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from itpn_mm.layers import AttentionBlock, sincos_pos_embed
from itpn_mm.layers.arguments import are_sizes, check_counts, check_positive, check_sizes
from itpn_mm.layers.linear import init_linear
from itpn_mm.registry import MODELS

from .masking import PatchMask


class LevelEmbed(nn.Module):
    """One token per patch from the k x k sub-tokens of a level.

    (B, h * k, w * k, F) -> (B, h * w, D).
    """

    def __init__(self, in_channels: int, embed_dims: int, side: int, norm_eps: float) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(in_channels, norm_eps)
        self.proj = nn.Linear(in_channels, embed_dims // side**2)

    def forward(self, x: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        k, h, w = self.side, height // self.side, width // self.side
        x = self.proj(self.norm(x)).view(b, h, k, w, k, -1)
        return x.transpose(2, 3).reshape(b, h * w, -1)


class LevelReader(BaseModule):
    """Base of the decoders: brings all levels to one token per patch and adds them.

    Args:
        in_channels: Channels F of the pyramid.
        strides: Strides of the pyramid levels, finest first; the last is that of a patch.
        embed_dims: Width D, a multiple of the number of sub-tokens in a patch of the finest level.
        norm_eps: Epsilon of all LayerNorms.

    Raises:
        ValueError: ``strides`` or ``embed_dims`` do not fit.
    """

    def __init__(
        self,
        in_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16),
        embed_dims: int = 512,
        norm_eps: float = 1e-6,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not are_sizes(strides):
            raise ValueError(f'`strides` must be numbers of at least 1, but got {strides!r}')
        check_sizes(in_channels=in_channels, embed_dims=embed_dims)
        check_positive(norm_eps=norm_eps)
        self.in_channels, self.strides, self.embed_dims = in_channels, tuple(strides), embed_dims
        rising = list(self.strides) == sorted(set(self.strides))
        if not self.strides or not rising or any(self.strides[-1] % s for s in self.strides):
            raise ValueError(
                '`strides` of the decoder must rise and divide the last one, but got '
                f'{self.strides}'
            )
        sides = [self.strides[-1] // s for s in self.strides]
        if embed_dims % max(sides) ** 2:
            raise ValueError(
                f'`embed_dims` of the decoder must be a multiple of {max(sides) ** 2}, the '
                f'sub-tokens in a patch at stride {self.strides[0]}, but got {embed_dims}'
            )
        self.embeds = nn.ModuleDict(
            {
                f'p{s}': LevelEmbed(in_channels, embed_dims, side, norm_eps)
                for s, side in zip(self.strides, sides, strict=True)
            }
        )
        self.norm = nn.LayerNorm(embed_dims, norm_eps)

    def sum_levels(self, levels: dict[int, Tensor]) -> Tensor:
        """V, the sum of all V^s (Section 3.2), as one token per patch.

        Levels by stride, (B, h * k, w * k, F) with k = patch / stride -> (B, h * w, D).
        """
        return sum(self.embeds[f'p{s}'](levels[s]) for s in self.strides)


@MODELS.register_module()
class LevelSum(LevelReader):
    """The decoder of CLIP supervision: the normalised sum of all levels (Section 3.4, option ii).

    Arguments as of :class:`LevelReader`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.apply(init_linear)

    def forward(self, levels: dict[int, Tensor]) -> Tensor:
        """Levels as of :meth:`sum_levels` -> tokens (B, h * w, D), row-major."""
        return self.norm(self.sum_levels(levels))


@MODELS.register_module()
class MIMDecoder(LevelReader):
    """Transformer that fills in the masked patches from the sum of all levels (Section 3.2).

    Args:
        in_channels: See :class:`LevelReader`.
        strides: See :class:`LevelReader`.
        embed_dims: See :class:`LevelReader`; also a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Number of heads.
        mlp_ratio: MLP ratio.
        img_size: Side of square images; sets the grid of the fixed sine-cosine position embedding.
            Other grids get theirs computed on the fly.
        patch_size: Side of a patch in pixels.
        norm_eps: Epsilon of all LayerNorms.

    Raises:
        ValueError: ``strides`` or ``embed_dims`` do not fit.
    """

    def __init__(
        self,
        in_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16),
        embed_dims: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        img_size: int = 224,
        patch_size: int = 16,
        norm_eps: float = 1e-6,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, strides, embed_dims, norm_eps, init_cfg)
        check_counts(depth=depth)
        check_sizes(num_heads=num_heads, patch_size=patch_size)
        check_positive(mlp_ratio=mlp_ratio)
        if not are_sizes([img_size]) or img_size % patch_size:
            raise ValueError(
                f'`img_size` of the decoder must be a positive multiple of patch_size={patch_size},'
                f' but got {img_size!r}'
            )
        if patch_size != self.strides[-1]:
            raise ValueError(
                f'`patch_size` of the decoder must be the last of its strides {self.strides}, but '
                f'got {patch_size}'
            )
        if embed_dims % num_heads:
            raise ValueError(
                f'`embed_dims` of the decoder must be a multiple of num_heads={num_heads}, '
                f'but got {embed_dims}'
            )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.register_buffer('pos_embed', sincos_pos_embed(self.grid, embed_dims))
        self.blocks = nn.ModuleList(
            AttentionBlock(embed_dims, num_heads, mlp_ratio, norm_eps=norm_eps)
            for _ in range(depth)
        )
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(self._init_linear)

    @staticmethod
    def _init_linear(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, levels: dict[int, Tensor], mask: PatchMask, grid: tuple[int, int]) -> Tensor:
        """Decode the visible patches into tokens of all patches.

        Args:
            levels: Pyramid levels of the visible patches by stride, (B, V * k, k, F) with k = patch
                / stride.
            mask: Visible and masked patches.
            grid: Grid (h, w) of all patches.

        Returns:
            Tokens (B, L, D), row-major.
        """
        visible = self.sum_levels(levels)
        # Each level would be filled with the mask token before the sum, hence its factor.
        filler = (len(self.strides) * self.mask_token).to(visible.dtype)
        num_patches = grid[0] * grid[1]
        x = filler.expand(visible.shape[0], num_patches, -1)
        x = x.scatter(1, mask.keep.unsqueeze(-1).expand_as(visible), visible)
        x = x + (
            self.pos_embed if grid == self.grid else sincos_pos_embed(grid, self.embed_dims).to(x)
        )
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
