"""The pixel decoder (MaskDINO, Section 3.2): a deformable encoder and one map for all masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.layers import DeformableDetrTransformerEncoderLayer, SinePositionalEncoding
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from itpn_mm.layers.arguments import are_sizes, check_counts, check_sizes

from .layers import init_layers
from .padding import PaddedGroupNorm, extend_image, find_image
from .precision import single_precision
from .tokens import LevelTokens

GROUPS = 32  # of group normalisation


class ConvNorm(nn.Module):
    """Convolution, group normalisation, and maybe a ReLU; padding is 0 before and after."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        bias: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias
        )
        self.norm = PaddedGroupNorm(GROUPS, out_channels)
        self.relu = relu

    def forward(self, maps: Tensor, ratios: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride)."""
        if ratios is not None:
            maps = maps * find_image(ratios, maps.shape[-2:])[:, None]
        maps = self.conv(maps)
        maps = self.norm(maps, ratios if ratios is None else find_image(ratios, maps.shape[-2:]))
        return F.relu(maps, inplace=True) if self.relu else maps


class MaskDINOPixelDecoder(BaseModule):
    """Backbone maps -> tokens of L levels that have seen each other, and the map of mask features.

    Runs in single precision, also under automatic mixed precision.

    Args:
        in_channels: Channels of the maps, the finest (stride 4) first. The last ones are encoded.
        num_levels: Encoded levels L.
        num_extra_levels: How many of them do not come from a map, but from a convolution of
            stride 2 on the level before (on the coarsest map for the first).
        feat_channels: Channels C of tokens.
        out_channels: Channels of the mask features.
        num_layers: Encoder layers.
        num_heads: Heads of attention.
        num_points: Points that a head samples on each level.
        feedforward_channels: Hidden channels of the encoder's MLPs.
        init_cfg: Initialisation config.

    Raises:
        ValueError: More levels than maps, or channels that cannot be divided.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_levels: int = 3,
        num_extra_levels: int = 0,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 1024,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not are_sizes(in_channels):
            raise ValueError(f'`in_channels` must be numbers of at least 1, but got {in_channels}')
        check_sizes(
            num_levels=num_levels,
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_heads=num_heads,
            num_points=num_points,
            feedforward_channels=feedforward_channels,
        )
        check_counts(num_layers=num_layers)
        encoded = num_levels - num_extra_levels
        if not 0 < encoded <= len(in_channels) or num_extra_levels < 0:
            raise ValueError(
                f'`num_levels` is {num_levels} and `num_extra_levels` {num_extra_levels}, which '
                f'takes {encoded} maps, but `in_channels` names {len(in_channels)}'
            )
        if feat_channels % GROUPS:
            raise ValueError(f'`feat_channels` must be a multiple of {GROUPS}, got {feat_channels}')
        self.in_channels = tuple(in_channels)
        self.num_levels = num_levels
        self.num_encoded = encoded
        self.input_convs = nn.ModuleList(
            ConvNorm(channels, feat_channels) for channels in in_channels[-encoded:]
        )
        for level in range(num_extra_levels):
            channels = feat_channels if level else in_channels[-1]
            self.input_convs.append(ConvNorm(channels, feat_channels, kernel_size=3, stride=2))
        self.level_embed = nn.Parameter(torch.randn(num_levels, feat_channels))
        self.position = SinePositionalEncoding(num_feats=feat_channels // 2, normalize=True)
        self.layers = ModuleList(
            DeformableDetrTransformerEncoderLayer(
                self_attn_cfg=dict(
                    embed_dims=feat_channels,
                    num_levels=num_levels,
                    num_heads=num_heads,
                    num_points=num_points,
                    dropout=0.0,
                    batch_first=True,
                ),
                ffn_cfg=dict(
                    embed_dims=feat_channels,
                    feedforward_channels=feedforward_channels,
                    ffn_drop=0.0,
                ),
            )
            for _ in range(num_layers)
        )
        self.lateral = ConvNorm(in_channels[0], feat_channels, bias=False)
        self.fuse = ConvNorm(feat_channels, feat_channels, kernel_size=3, bias=False, relu=True)
        self.mask_features = nn.Conv2d(feat_channels, out_channels, 1)

    def init_weights(self) -> None:
        """Initialise as the authors do; what deformable attention samples starts on a star."""
        super().init_weights()
        for conv in self.input_convs:
            nn.init.xavier_uniform_(conv.conv.weight)
            nn.init.zeros_(conv.conv.bias)
        for conv in (self.lateral.conv, self.fuse.conv, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)
        nn.init.normal_(self.level_embed)
        init_layers(self.layers)

    def forward(
        self, maps: Sequence[Tensor], ratios: Tensor | None = None
    ) -> tuple[Tensor, LevelTokens]:
        """Encode.

        Args:
            maps: (B, in_channels[i], H_i, W_i), the finest first.
            ratios: (B, 2), see `itpn_mm.maskdino.padding`.

        Returns:
            Mask features (B, out_channels, H_0, W_0), and the tokens (B, N, C).
        """
        with single_precision(maps[0].device):
            maps = [level.float() for level in maps]
            levels = self._project(maps, ratios)
            memory = self._encode(levels, ratios)
            return self._fuse(maps[0], memory), memory

    def _project(self, maps: Sequence[Tensor], ratios: Tensor | None) -> LevelTokens:
        levels = []
        for index, conv in enumerate(self.input_convs):
            extra = index - self.num_encoded
            if extra < 0:
                source = maps[len(maps) - self.num_encoded + index]
            else:
                source = levels[-1] if extra else maps[-1]
            levels.append(conv(source, ratios))
        return LevelTokens.from_maps(levels, ratios)

    def _encode(self, levels: LevelTokens, ratios: Tensor | None) -> LevelTokens:
        tokens, inputs = levels.tokens, levels.attention_inputs()
        centres = levels.centres[None, :, None].expand(len(tokens), -1, self.num_levels, -1)
        position = self.positions(levels)
        for layer in self.layers:
            tokens = layer(tokens, query_pos=position, reference_points=centres, **inputs)
        return LevelTokens(tokens, levels.sizes, ratios)

    def positions(self, levels: LevelTokens) -> Tensor:
        """(B or 1, N, C): sine code of a cell's place in the image, and which level it is of."""
        out = []
        for size, embed in zip(levels.sizes, self.level_embed, strict=True):
            if levels.ratios is None:
                outside = levels.tokens.new_zeros((1, *size), dtype=torch.bool)
            else:
                outside = ~find_image(levels.ratios, size)
            out.append(self.position(outside).flatten(2).mT + embed)
        return torch.cat(out, 1)

    def _fuse(self, finest: Tensor, memory: LevelTokens) -> Tensor:
        """Sum the finest map and the finest encoded level, and smooth."""
        encoded, ratios = memory.to_maps()[0], memory.ratios
        if ratios is not None:
            encoded = extend_image(encoded, find_image(ratios, encoded.shape[-2:]))
        lateral = self.lateral(finest, ratios)
        encoded = F.interpolate(encoded, lateral.shape[-2:], mode='bilinear', align_corners=False)
        features = self.mask_features(self.fuse(lateral + encoded, ratios))
        if ratios is None:
            return features
        # points next to the border see what is behind it: nothing, as without padding
        return features * find_image(ratios, features.shape[-2:])[:, None]
