"""Table IX's other pyramid: convolutions in the place of channel MLPs."""

from torch import Tensor, nn

from itpn_mm.necks import TransformerPyramidNeck
from itpn_mm.registry import MODELS


class ConvBlock(nn.Module):
    """Residual 3 x 3 and 1 x 1 convolutions, x + W2 gelu(W1 * norm(x)), channels last.

    While masked, the visible patches stand in one column, (B, V * k, k, C) with k sub-tokens along
    the side of a patch. What a convolution would read beyond a patch is zero there, as patches that
    are neighbours in the column are none in the image.

    Args:
        embed_dims: Channels C.
        hidden_dims: Channels between the convolutions.
        norm_eps: Epsilon of the LayerNorm.
        side: Sub-tokens k along the side of a patch.
    """

    def __init__(self, embed_dims: int, hidden_dims: int, norm_eps: float, side: int) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(embed_dims, norm_eps)
        self.conv1 = nn.Conv2d(embed_dims, hidden_dims, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_dims, embed_dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if x.shape[2] == self.side:
            y = y.reshape(-1, self.side, self.side, y.shape[-1])
        y = self.conv2(nn.functional.gelu(self.conv1(y.permute(0, 3, 1, 2))))
        return x + y.permute(0, 2, 3, 1).reshape(x.shape)


@MODELS.register_module()
class ConvPyramidNeck(TransformerPyramidNeck):
    """The pyramid with a convolution block wherever it has a channel MLP, of as many parameters.

    Arguments as of :class:`itpn_mm.necks.TransformerPyramidNeck`.
    """

    def __init__(self, *args, mlp_ratio: float = 4.0, norm_eps: float = 1e-6, **kwargs) -> None:
        super().__init__(*args, mlp_ratio=mlp_ratio, norm_eps=norm_eps, **kwargs)
        width = self.out_channels
        # C-MLP: 2 r F^2 weights; 3 x 3 and 1 x 1 convolutions with h channels between: 10 h F.
        hidden = round(2 * mlp_ratio * width / 10)
        top = self.in_strides[-1]
        for level, blocks in self.blocks.items():
            side = top // int(level[1:])
            self.blocks[level] = nn.Sequential(
                *(ConvBlock(width, hidden, norm_eps, side) for _ in blocks)
            )
        for level in self.outputs:
            self.outputs[level] = ConvBlock(width, hidden, norm_eps, top // int(level[1:]))
        self.apply(self._init_conv)

    @staticmethod
    def _init_conv(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
