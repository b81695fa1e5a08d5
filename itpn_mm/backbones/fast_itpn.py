"""Fast-iTPN's backbone (Section 4.3, Table II)."""

from typing import ClassVar

import torch
from torch import nn

from itpn_mm.layers import (
    AttentionBlock,
    DecoupledRelativePositionBias,
    MlpBlock,
    PatchMerge,
    RelativePositionBias,
)
from itpn_mm.layers.arguments import check_flags
from itpn_mm.layers.linear import init_linear
from itpn_mm.registry import MODELS

from .hivit import HiViT


@MODELS.register_module()
class FastiTPN(HiViT):
    """HiViT with the layers of Table II: the same stages, positions and outputs.

    Stages 1 and 2 are MLPs with sub-LN; what the release computes as 1 x 1 and 2 x 2 convolutions
    are linear layers here, on channels-last tensors. Stage 3 has SwiGLU with sub-LN, an MLP ratio
    of 3, keys without bias, and layer scale. Unlike the release, it takes images of any size.

    Args:
        arch: Name in ``arch_zoo``, or a dict as for :class:`HiViT`.
        mlp_ratio: MLP ratio of stage 3.
        sub_norm: Whether the MLPs of all stages normalise their hidden layer.
        swiglu: Whether the MLPs of stage 3 are gated.
        cls_token: Whether a class token takes part in stage 3. It is not in the outputs; the
            classifiers of the release do not read it either.
        layer_scale_init_value: Initial value of layer scale in stage 3; ``None`` for no layer
            scale.
        patch_norm: Whether a LayerNorm follows the patch embedding.
        interpolate_offset: See :func:`itpn_mm.layers.resize_pos_embed`.
        rel_pos_bias: Relative position bias of stage 3: ``None``, a table per ``'block'``, one
            ``'shared'`` table, or ``'decoupled'``: one table of rows and one of columns, which all
            blocks share. Tables are resampled in geometric progression.
        **kwargs: All other arguments of :class:`HiViT`.

    Raises:
        ValueError: An argument does not fit, or an image has no whole patch.
    """

    arch_zoo: ClassVar[dict[str, dict]] = dict(
        tiny=dict(embed_dims=384, depths=(1, 1, 12), num_heads=6),
        small=dict(embed_dims=384, depths=(2, 2, 20), num_heads=6),
        base=dict(embed_dims=512, depths=(3, 3, 24), num_heads=8),
        large=dict(embed_dims=768, depths=(2, 2, 40), num_heads=12),
    )
    rel_pos_kinds: ClassVar[tuple[str | None, ...]] = (None, 'block', 'shared', 'decoupled')

    def __init__(
        self,
        arch: str | dict = 'base',
        *,
        mlp_ratio: float = 3.0,
        sub_norm: bool = True,
        swiglu: bool = True,
        cls_token: bool = False,
        layer_scale_init_value: float | None = 0.1,
        patch_norm: bool = False,
        interpolate_offset: float = 0.0,
        **kwargs,
    ) -> None:
        check_flags(sub_norm=sub_norm, swiglu=swiglu, cls_token=cls_token)
        # Plain values that the methods below read while the base class builds the layers.
        self.sub_norm, self.swiglu = sub_norm, swiglu
        self.num_prefix_tokens = int(cls_token)
        super().__init__(
            arch,
            mlp_ratio=mlp_ratio,
            layer_scale_init_value=layer_scale_init_value,
            patch_norm=patch_norm,
            interpolate_offset=interpolate_offset,
            **kwargs,
        )

    def _init_positions(self, use_abs_pos_emb: bool) -> None:
        """Truncated normal of 0.02, as released."""
        num_tokens = self.num_prefix_tokens + self.grid[0] * self.grid[1]
        self.cls_token = (
            nn.Parameter(torch.zeros(1, 1, self.embed_dims)) if self.num_prefix_tokens else None
        )
        self.pos_embed = (
            nn.Parameter(torch.zeros(1, num_tokens, self.embed_dims)) if use_abs_pos_emb else None
        )
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def _init_linears(self) -> None:
        """Stage 3 as HiViT; what the release has as convolutions keeps torch's default."""
        self.stages[2].apply(init_linear)

    def _build_merge(self, dim: int, norm_eps: float) -> nn.Module:
        return PatchMerge(dim, norm_eps, norm_first=True)

    def _build_mlp_block(self, dim: int, mlp_ratio: float, **kwargs) -> nn.Module:
        kwargs['layer_scale_init_value'] = None
        return MlpBlock(dim, mlp_ratio, sub_norm=self.sub_norm, **kwargs)

    def _build_attention_block(
        self, dim: int, num_heads: int, mlp_ratio: float, **kwargs
    ) -> nn.Module:
        return AttentionBlock(
            dim,
            num_heads,
            mlp_ratio,
            k_bias=False,
            sub_norm=self.sub_norm,
            swiglu=self.swiglu,
            **kwargs,
        )

    def _build_rel_pos(self, kind: str | None, num_heads: int) -> nn.Module | None:
        return self._build_table(num_heads) if kind == 'block' else None

    def _build_shared_rel_pos(self, kind: str | None, num_heads: int) -> nn.Module | None:
        if kind == 'decoupled':
            return DecoupledRelativePositionBias(
                self.grid, num_heads, cls_token=bool(self.num_prefix_tokens)
            )
        return self._build_table(num_heads) if kind == 'shared' else None

    def _build_table(self, num_heads: int) -> nn.Module:
        return RelativePositionBias(
            self.grid,
            num_heads,
            cls_token=bool(self.num_prefix_tokens),
            resize_mode='geometric',
        )
