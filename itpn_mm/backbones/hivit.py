"""HiViT, the hierarchical vision transformer of iTPN (Section 3.4, Table I; arXiv 2205.14949)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itpn_mm.checkpoint.pretrained import PretrainedModule
from itpn_mm.layers import (
    AttentionBlock,
    DecomposedRelativePosition,
    MlpBlock,
    PatchEmbed,
    PatchMerge,
    RelativePositionBias,
    TokenGrid,
    gather_patches,
    resize_pos_embed,
    sincos_pos_embed,
)
from itpn_mm.layers.arguments import (
    check_flags,
    check_numbers,
    check_positive,
    check_rates,
    check_sizes,
    is_whole,
)
from itpn_mm.layers.linear import init_linear
from itpn_mm.registry import MODELS

from .arguments import parse_arch, parse_grid, parse_out_indices, parse_with_cp


@MODELS.register_module()
class HiViT(PretrainedModule):
    """Hierarchical vision transformer whose early stages never look beyond a patch.

    Stages 1 and 2 are channel MLPs on the 4 x 4 and 2 x 2 sub-tokens of every patch, stage 3 is a
    plain ViT on the grid of patches. So patches can be left out before the first layer, and
    features still come at strides 4, 8 and 16.

    Args:
        arch: Name in ``arch_zoo``, or a dict with ``embed_dims`` (width E of stage 3; stages 1 and
            2 have E/4 and E/2), ``depths`` (blocks of the three stages) and ``num_heads``.
        img_size: Pre-training size of square images, or (height, width); sets the grid of position
            parameters. Images of other sizes are taken all the same: positions are resampled.
        patch_size: Side of a patch in pixels, a multiple of 4.
        in_channels: Channels of an image.
        stem_mlp_ratio: MLP ratio of stages 1 and 2.
        mlp_ratio: MLP ratio of stage 3.
        qkv_bias: Whether queries, keys and values have biases.
        patch_norm: Whether a LayerNorm follows the patch embedding.
        use_abs_pos_emb: Whether a learned position embedding (sine-cosine at the start) is added
            before stage 3.
        rel_pos_bias: Relative position bias of stage 3: ``None``, a table per ``'block'``, one
            ``'shared'`` table, or ``'decomposed'`` into rows and columns (ViTDet).
        layer_scale_init_value: Initial value of layer scale; ``None`` for no layer scale.
        drop_rate: Dropout after the position embedding, the attention projection and in the MLPs.
        drop_path_rate: Stochastic depth of the last block; the blocks before rise to it linearly
            from 0.
        norm_eps: Epsilon of all LayerNorms.
        interpolate_offset: See :func:`itpn_mm.layers.resize_pos_embed`; the released iTPN numbers
            need 0.1.
        out_indices: Stages (0, 1, 2 for strides 4, 8, 16) to return.
        frozen_stages: Stages that do not train: -1 none, 0 the patch embedding, k also the first k
            stages with the merges before them (3 includes the position parameters).
        with_cp: Stages (0, 1, 2) whose blocks recompute their activations in the backward pass, to
            save memory; ``True`` for all of them.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)`` or mmengine initialisers.

    Raises:
        ValueError: An argument does not fit, or an image has no whole patch.
    """

    # Tiny and small: HiViT's own sizes; base and large: those of iTPN. Giant (iTPN-g): the paper
    # tells the number of parameters alone, 1000 M; the widths are inferred from it.
    arch_zoo: ClassVar[dict[str, dict]] = dict(
        tiny=dict(embed_dims=384, depths=(1, 1, 10), num_heads=6),
        small=dict(embed_dims=384, depths=(2, 2, 20), num_heads=6),
        base=dict(embed_dims=512, depths=(3, 3, 24), num_heads=8),
        large=dict(embed_dims=768, depths=(2, 2, 40), num_heads=12),
        giant=dict(embed_dims=1408, depths=(2, 2, 40), num_heads=22),
    )
    rel_pos_kinds: ClassVar[tuple[str | None, ...]] = (None, 'block', 'shared', 'decomposed')
    num_prefix_tokens: int = 0  # class tokens before the patches in stage 3
    checkpoint_prefix = 'backbone.'

    def __init__(
        self,
        arch: str | dict = 'base',
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        use_abs_pos_emb: bool = True,
        rel_pos_bias: str | None = None,
        layer_scale_init_value: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        interpolate_offset: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_sizes(in_channels=in_channels)
        check_positive(stem_mlp_ratio=stem_mlp_ratio, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_flags(qkv_bias=qkv_bias, patch_norm=patch_norm, use_abs_pos_emb=use_abs_pos_emb)
        check_numbers(interpolate_offset=interpolate_offset)
        if layer_scale_init_value is not None:
            check_numbers(layer_scale_init_value=layer_scale_init_value)
        arch = parse_arch(arch, self.arch_zoo)
        self.embed_dims, self.depths = arch['embed_dims'], tuple(arch['depths'])
        num_heads = arch['num_heads']
        self.patch_size = patch_size
        self.grid = parse_grid(img_size, patch_size)
        self.out_indices = parse_out_indices(out_indices)
        if rel_pos_bias not in self.rel_pos_kinds:
            raise ValueError(
                f'`rel_pos_bias` must be one of {self.rel_pos_kinds}, but got {rel_pos_bias!r}'
            )
        if rel_pos_bias == 'decomposed' and self.grid[0] != self.grid[1]:
            raise ValueError(
                f"`rel_pos_bias='decomposed'` needs a square `img_size`, but got {img_size}"
            )
        if not is_whole(frozen_stages) or not -1 <= frozen_stages <= 3:
            raise ValueError(f'`frozen_stages` must be in -1..3, but got {frozen_stages!r}')
        self.acceleration: nn.Module | None = None  # set by TokenMigration
        self.frozen_stages = frozen_stages
        self.with_cp = parse_with_cp(with_cp)
        self.interpolate_offset = interpolate_offset

        dims = (self.embed_dims // 4, self.embed_dims // 2, self.embed_dims)
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.strides = tuple(patch_size // 4 * 2**i for i in self.out_indices)

        self.patch_embed = PatchEmbed(in_channels, dims[0], patch_size // 4, patch_norm, norm_eps)
        self.merges = nn.ModuleList(self._build_merge(dim, norm_eps) for dim in dims[:2])
        rates = torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu')  # never 'meta'
        rates = iter(rates.tolist())
        common = dict(
            layer_scale_init_value=layer_scale_init_value, drop_rate=drop_rate, norm_eps=norm_eps
        )
        self.stages = nn.ModuleList()
        for dim, depth in zip(dims[:2], self.depths[:2], strict=True):
            self.stages.append(
                nn.ModuleList(
                    self._build_mlp_block(dim, stem_mlp_ratio, drop_path_rate=next(rates), **common)
                    for _ in range(depth)
                )
            )
        self.stages.append(
            nn.ModuleList(
                self._build_attention_block(
                    dims[2],
                    num_heads,
                    mlp_ratio,
                    qkv_bias=qkv_bias,
                    rel_pos=self._build_rel_pos(rel_pos_bias, num_heads),
                    drop_path_rate=next(rates),
                    **common,
                )
                for _ in range(self.depths[2])
            )
        )
        self.rel_pos = self._build_shared_rel_pos(rel_pos_bias, num_heads)
        self.drop_after_pos = nn.Dropout(drop_rate)
        self._init_positions(use_abs_pos_emb)
        self._init_linears()
        self._freeze_stages()

    def _init_positions(self, use_abs_pos_emb: bool) -> None:
        self.cls_token = None
        self.pos_embed = (
            nn.Parameter(sincos_pos_embed(self.grid, self.embed_dims)) if use_abs_pos_emb else None
        )

    def _init_linears(self) -> None:
        self.apply(init_linear)

    def _build_merge(self, dim: int, norm_eps: float) -> nn.Module:
        return PatchMerge(dim, norm_eps)

    def _build_mlp_block(self, dim: int, mlp_ratio: float, **kwargs) -> nn.Module:
        """Block of stages 1 and 2."""
        return MlpBlock(dim, mlp_ratio, **kwargs)

    def _build_attention_block(
        self, dim: int, num_heads: int, mlp_ratio: float, **kwargs
    ) -> nn.Module:
        """Block of stage 3."""
        return AttentionBlock(dim, num_heads, mlp_ratio, **kwargs)

    def _build_rel_pos(self, kind: str | None, num_heads: int) -> nn.Module | None:
        """Relative position of one block."""
        if kind == 'block':
            return RelativePositionBias(self.grid, num_heads)
        if kind == 'decomposed':
            return DecomposedRelativePosition(self.grid[0], self.embed_dims // num_heads)
        return None

    def _build_shared_rel_pos(self, kind: str | None, num_heads: int) -> nn.Module | None:
        """Relative position that all blocks share."""
        return RelativePositionBias(self.grid, num_heads) if kind == 'shared' else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> maps (B, C, H / s, W / s) of the stages ``out_indices``.

        The strides s are 4, 8 and 16 for patches of 16 pixels.

        H and W are padded with zeros to whole patches; the maps cover the padded image.
        """
        maps = self.forward_stages(x)
        # Contiguous, because mmcv's operators, such as RoIAlign, read memory as (B, C, H, W).
        return tuple(maps[i].permute(0, 3, 1, 2).contiguous() for i in self.out_indices)

    def forward_stages(
        self, x: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the three stages, channels last: U^1, U^2, U^3 of Equation 2.

        Args:
            x: Images (B, 3, H, W).
            keep: Indices (B, V) of the patches to run, row-major over the grid; ``None`` runs all
                of them.

        Returns:
            (B, H/4, W/4, E/4), (B, H/8, W/8, E/2), (B, H/16, W/16, E); with ``keep``, the V patches
            stand in one column: (B, 4V, 4, E/4), (B, 2V, 2, E/2), (B, V, 1, E).
        """
        *maps, x, tokens = self.forward_stem(x, keep)
        return *maps, self.run_attention(x.flatten(1, 2), tokens).reshape(x.shape)

    def forward_stem(
        self, x: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, TokenGrid]:
        """Stages 1 and 2, which look at each patch by itself (Equation 5).

        Args:
            x: Images (B, 3, H, W).
            keep: See :meth:`forward_stages`.

        Returns:
            Outputs of stages 1 and 2, the input of stage 3, all of them channels last, and the grid
            of its tokens.
        """
        x = self._pad(x)
        height, width = (n // self.patch_size for n in x.shape[2:])
        tokens = TokenGrid(height, width, keep, x.device)
        if keep is not None:
            x = gather_patches(x, keep, self.patch_size)
        x = self.patch_embed(x)
        maps = []
        for stage, (blocks, merge) in enumerate(zip(self.stages, self.merges)):
            for block in blocks:
                x = self.run_block(block, x, stage=stage)
            maps.append(x)
            x = merge(x)
        return *maps, x, tokens

    def run_attention(self, x: Tensor, tokens: TokenGrid) -> Tensor:
        """Stage 3, the one step that mixes patches: (B, L, E) -> (B, L, E)."""
        x = self.add_positions(x, tokens)
        if self.acceleration is not None:
            return self.acceleration(self, x, tokens)
        return self.run_blocks(x, tokens)[:, self.num_prefix_tokens :]

    def add_positions(self, x: Tensor, tokens: TokenGrid) -> Tensor:
        """Add the position embedding, and the class token if there is one.

        (B, L, E) -> (B, P + L, E), with P = ``num_prefix_tokens``.
        """
        if self.pos_embed is not None:
            x = x + self.position(tokens)
        if self.cls_token is not None:
            cls_token = self.cls_token
            if self.pos_embed is not None:
                cls_token = cls_token + self.pos_embed[:, :1]
            x = torch.cat([cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        return self.drop_after_pos(x)

    def run_blocks(
        self, x: Tensor, tokens: TokenGrid, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Blocks ``start`` to ``stop`` (excluded) of stage 3: (B, P + L, E) -> (B, P + L, E)."""
        bias = None if self.rel_pos is None else self.rel_pos(x, tokens)
        for block in list(self.stages[2])[start:stop]:
            x = self.run_block(block, x, tokens, bias)
        return x

    def position(self, tokens: TokenGrid) -> Tensor:
        """Position embedding of the patches: (1, L, E), or (B, V, E) if only some are kept."""
        pos = resize_pos_embed(
            self.pos_embed[:, self.num_prefix_tokens :],
            self.grid,
            (tokens.height, tokens.width),
            self.interpolate_offset,
        )
        return pos if tokens.keep is None else pos[0][tokens.keep]

    def run_block(self, block: nn.Module, *args, stage: int = 2) -> Tensor:
        """Call a block of a stage, which recomputes its activations if ``with_cp`` says so."""
        if stage in self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _pad(self, x: Tensor) -> Tensor:
        p, channels = self.patch_size, self.patch_embed.proj.in_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f'images must be (B, {channels}, H, W), but got {tuple(x.shape)}; '
                'set `in_channels` of the backbone to the number of their channels'
            )
        height, width = x.shape[2:]
        if height < p or width < p:
            raise ValueError(
                f'images must be at least one patch ({p} x {p} pixels), but got {height} x {width}'
            )
        bottom, right = -height % p, -width % p
        return F.pad(x, (0, right, 0, bottom)) if bottom or right else x

    def train(self, mode: bool = True) -> 'HiViT':
        """Set the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        modules = [
            self.patch_embed,
            *self.stages[: self.frozen_stages],
            *self.merges[: max(self.frozen_stages - 1, 0)],
        ]
        parameters = []
        if self.frozen_stages == 3:
            parameters += [self.pos_embed, self.cls_token]
            modules += [self.rel_pos, self.drop_after_pos]
        for module in filter(None, modules):
            module.eval()
            parameters.extend(module.parameters())
        for parameter in filter(lambda p: p is not None, parameters):
            parameter.requires_grad_(False)

    def get_layer_depth(
        self, param_name: str, prefix: str = '', unit: str = 'block'
    ) -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter, starting with ``prefix``.
            prefix: Where the backbone stands in the model, e.g. ``'backbone.'``.
            unit: What counts as a layer. ``'block'``: each block of each stage; a merge belongs to
                the block before it (the authors' iTPN classification). ``'layer'``: each block and
                each merge (their Fast-iTPN classification). ``'attention'``: each attention block;
                all before is layer 0 (their HiViT constructor for detection).

        Returns:
            Layer id from 0 (input), and the number of layers with that of the neck and heads as the
            last.
        """
        if unit not in ('block', 'layer', 'attention'):
            raise ValueError(f"`unit` must be 'block', 'layer' or 'attention', but got {unit!r}")
        # Layers before each of the stages.
        merge = 1 if unit == 'layer' else 0
        starts = (0, self.depths[0] + merge, sum(self.depths[:2]) + 2 * merge)
        if unit == 'attention':
            starts = (0, 0, 0)
        num_layers = starts[2] + self.depths[2] + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        kind, *rest = param_name.removeprefix(prefix).split('.')
        if kind == 'stages':
            stage, index = int(rest[0]), int(rest[1])
            in_stem = unit == 'attention' and stage < 2
            return 0 if in_stem else starts[stage] + index + 1, num_layers
        if kind == 'merges':
            return starts[int(rest[0]) + 1], num_layers
        if kind == 'acceleration':  # as new as a head
            return num_layers - 1, num_layers
        return 0, num_layers  # patch embedding and position parameters
