"""Building blocks on channels-last tensors; they need torch alone and know no model."""

from .attention import Attention
from .block import AttentionBlock, LayerScale, MlpBlock
from .linear import Linear
from .mlp import Mlp, SwiGLU
from .patch import PatchEmbed, PatchMerge, PatchSplit, gather_patches, patchify, unpatchify
from .position import (
    DecomposedRelativePosition,
    DecoupledRelativePositionBias,
    RelativePositionBias,
    TokenGrid,
    resize_pos_embed,
    sincos_pos_embed,
)

__all__ = [
    'Attention',
    'AttentionBlock',
    'DecomposedRelativePosition',
    'DecoupledRelativePositionBias',
    'LayerScale',
    'Linear',
    'Mlp',
    'MlpBlock',
    'PatchEmbed',
    'PatchMerge',
    'PatchSplit',
    'RelativePositionBias',
    'SwiGLU',
    'TokenGrid',
    'gather_patches',
    'patchify',
    'resize_pos_embed',
    'sincos_pos_embed',
    'unpatchify',
]
