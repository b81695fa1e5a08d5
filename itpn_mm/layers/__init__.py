"""Building blocks on channels-last tensors; they need torch alone and know no model."""

from .attention import Attention, QKVLinear
from .block import AttentionBlock, DropPath, LayerScale, MlpBlock
from .linear import Linear
from .mlp import Mlp, SwiGLU
from .patch import PatchEmbed, PatchMerge, PatchSplit, gather_patches, patchify, unpatchify
from .position import (
    DecomposedRelativePosition,
    DecoupledRelativePositionBias,
    RelativePositionBias,
    TokenGrid,
    resize_decoupled_table,
    resize_pos_embed,
    resize_rel_pos_1d,
    resize_rel_pos_table,
    sincos_pos_embed,
)

__all__ = [
    'Attention',
    'AttentionBlock',
    'DecomposedRelativePosition',
    'DecoupledRelativePositionBias',
    'DropPath',
    'LayerScale',
    'Linear',
    'Mlp',
    'MlpBlock',
    'PatchEmbed',
    'PatchMerge',
    'PatchSplit',
    'QKVLinear',
    'RelativePositionBias',
    'SwiGLU',
    'TokenGrid',
    'gather_patches',
    'patchify',
    'resize_decoupled_table',
    'resize_pos_embed',
    'resize_rel_pos_1d',
    'resize_rel_pos_table',
    'sincos_pos_embed',
    'unpatchify',
]
