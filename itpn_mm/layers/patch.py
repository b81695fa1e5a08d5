"""Cutting images into patches, merging and splitting the sub-tokens of a patch.

Letters: B images, h and w the grid of patches, L = h * w patches, V kept patches, N any batch, C
channels.

Nothing in this file, in the first two stages of HiViT, or in the feature pyramid crosses the border
of a patch. A selection of V patches is therefore run as *one tall image that is a single patch
wide*: ``(B, 3, V * patch, patch)``. Every module below treats it like any other image, which is why
there is no masked copy of anything.
"""

from torch import Tensor, nn

from .linear import Linear, linear


def gather_patches(img: Tensor, keep: Tensor, patch_size: int) -> Tensor:
    """Stack the kept patches of each image into one column.

    Args:
        img: Images (B, C, H, W), H and W multiples of ``patch_size``.
        keep: Indices (B, V) of patches, row-major over the grid.
        patch_size: Side of a patch in pixels.

    Returns:
        (B, C, V * patch_size, patch_size), the patches in the order of ``keep``.
    """
    b, c, height, width = img.shape
    p, h, w = patch_size, height // patch_size, width // patch_size
    patches = img.view(b, c, h, p, w, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, c * p * p)
    patches = patches.gather(1, keep.unsqueeze(-1).expand(-1, -1, c * p * p))
    return patches.view(b, -1, c, p, p).transpose(1, 2).reshape(b, c, -1, p)


def patchify(img: Tensor, patch_size: int) -> Tensor:
    """Pixels of each patch in (row, column, channel) order: (B, C, H, W) -> (B, L, p * p * C)."""
    b, c, height, width = img.shape
    p, h, w = patch_size, height // patch_size, width // patch_size
    return img.view(b, c, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, p * p * c)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch_size: int) -> Tensor:
    """Inverse of :func:`patchify`: (B, h * w, p * p * C) -> (B, C, h * p, w * p)."""
    (h, w), p = grid, patch_size
    patches = patches.view(patches.shape[0], h, w, p, p, -1)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(patches.shape[0], -1, h * p, w * p)


class PatchEmbed(nn.Module):
    """Linear embedding of square cells of pixels, with an optional LayerNorm.

    In HiViT the cells have 4 x 4 pixels, and C = E / 4.

    The weight is stored in the shape of a convolution, as the released models have it, and applied
    as one GEMM, which writes channels-last memory directly.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        cell_size: int,
        norm: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.cell_size = cell_size
        self.proj = nn.Conv2d(in_channels, embed_dims, cell_size, cell_size)
        self.norm = nn.LayerNorm(embed_dims, norm_eps) if norm else nn.Identity()

    def forward(self, img: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H / cell, W / cell, C)."""
        n, c, height, width = img.shape
        s = self.cell_size
        cells = (
            img.view(n, c, height // s, s, width // s, s)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(-1, c * s * s)
        )
        x = linear(cells, self.proj.weight.flatten(1), self.proj.bias)
        return self.norm(x).view(n, height // s, width // s, -1)


class PatchMerge(nn.Module):
    """Merge 2 x 2 neighbouring tokens into one of twice the channels.

    The four tokens are concatenated with the row offset varying fastest, the order of the released
    HiViT weights.

    Args:
        dim: Channels C of a token.
        norm_eps: Epsilon of the LayerNorm.
        norm_first: ``False``: the four tokens are normalised together, then reduced without bias
            (HiViT, as in Swin). ``True``: each token is normalised, and the reduction has a bias,
            which is a 2 x 2 convolution as one GEMM (Fast-iTPN).
    """

    def __init__(self, dim: int, norm_eps: float = 1e-6, norm_first: bool = False) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(dim if norm_first else 4 * dim, norm_eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=norm_first)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, H / 2, W / 2, 2 * C)."""
        if self.norm_first:
            return self.reduction(self._concat(self.norm(x)))
        return self.reduction(self.norm(self._concat(x)))

    @staticmethod
    def _concat(x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        # (n, h, row, w, column, c) -> (n, h, w, column, row, c)
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5)
        return x.reshape(n, h // 2, w // 2, 4 * c)


class PatchSplit(nn.Module):
    """Split each token into 2 x 2 tokens: the function g of the pyramid (Equation 3)."""

    def __init__(self, dim: int, out_dim: int, bias: bool = False, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.expand = Linear(dim, 4 * out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, 2 * H, 2 * W, C_out)."""
        n, h, w, _ = x.shape
        x = self.expand(self.norm(x)).view(n, h, w, 2, 2, -1)
        return x.transpose(2, 3).reshape(n, 2 * h, 2 * w, -1)  # (n, h, 2, w, 2, c)
