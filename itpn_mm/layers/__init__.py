"""Building blocks on channels-last tensors; they need torch alone and know no model."""

from .attention import Attention, QKVLinear
from .block import AttentionBlock, DropPath, LayerScale, MlpBlock
from .linear import Linear
from .migration import choose_leaving, restore_tokens, take_tokens
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
from .windows import TokenWindows, WindowGrid, attend

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
    'TokenWindows',
    'WindowGrid',
    'attend',
    'choose_leaving',
    'gather_patches',
    'patchify',
    'resize_decoupled_table',
    'resize_pos_embed',
    'resize_rel_pos_1d',
    'resize_rel_pos_table',
    'restore_tokens',
    'sincos_pos_embed',
    'take_tokens',
    'unpatchify',
]
