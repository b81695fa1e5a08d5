"""The feature pyramid that is pre-trained together with the backbone (Section 3.2, Equation 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itpn_mm.checkpoint.pretrained import PretrainedModule
from itpn_mm.layers import Linear, MlpBlock, PatchSplit
from itpn_mm.layers.arguments import (
    are_sizes,
    check_flags,
    check_positive,
    check_sizes,
    is_whole,
)
from itpn_mm.layers.linear import init_linear
from itpn_mm.registry import MODELS

POOLS = {'avg': F.avg_pool2d, 'max': F.max_pool2d}


@MODELS.register_module()
class TransformerPyramidNeck(PretrainedModule):
    """Top-down pyramid of token splitting and channel MLPs (Section 3.2).

    V^S = U^S, V^s = U^s + g^s(V^(s+1)): Equation 3, with U^s the maps of the backbone.

    Every step is point-wise or splits a token into 2 x 2, so maps of a few patches and maps of a
    whole image go through the same code. Levels are called by stride: ``p4``, ``p8``, ``p16``. What
    no chosen level needs is not built, so every parameter gets a gradient.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        out_channels: Channels F of every level.
        in_strides: Strides of the backbone's maps, each twice the one before.
        out_strides: Strides to return, rising: any of ``in_strides``, and coarser ones pooled from
            the last level.
        depth: Channel-MLP blocks after each splitting: one number, or one per splitting, finest
            first. The authors use 2 for pixel supervision and 1 for CLIP supervision.
        mlp_ratio: MLP ratio.
        bias: Whether splitting and all lateral projections have biases (Fast-iTPN); the top one
            always has.
        pool: How coarser levels come about: ``'avg'`` (as in the authors' detection) or ``'max'``
            (segmentation).
        concat_inputs: Whether each level is joined on channels by the backbone's map (the authors'
            UPerNet).
        norm_eps: Epsilon of all LayerNorms.
        with_cp: Whether the blocks recompute their activations in the backward pass, to save
            memory.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)`` or mmengine initialisers.

    Attributes:
        level_channels: Channels of each returned map.

    Raises:
        ValueError: An argument does not fit, or maps arrive that do not fit the arguments.
    """

    checkpoint_prefix = 'neck.'

    def __init__(
        self,
        in_channels: Sequence[int] = (128, 256, 512),
        out_channels: int = 256,
        *,
        in_strides: Sequence[int] = (4, 8, 16),
        out_strides: Sequence[int] = (4, 8, 16, 32, 64),
        depth: int | Sequence[int] = 2,
        mlp_ratio: float = 4.0,
        bias: bool = False,
        pool: str = 'avg',
        concat_inputs: bool = False,
        norm_eps: float = 1e-6,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        for name, sizes in (
            ('in_channels', in_channels),
            ('in_strides', in_strides),
            ('out_strides', out_strides),
        ):
            if not are_sizes(sizes):
                raise ValueError(f'`{name}` must be numbers of at least 1, but got {sizes!r}')
        check_sizes(out_channels=out_channels)
        self.in_channels, self.in_strides = tuple(in_channels), tuple(in_strides)
        self.out_channels, self.out_strides = out_channels, tuple(out_strides)
        self._check_strides()
        check_positive(mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        check_flags(bias=bias, concat_inputs=concat_inputs, with_cp=with_cp)
        if pool not in list(POOLS):
            raise ValueError(f'`pool` must be one of {sorted(POOLS)}, but got {pool!r}')
        self.pool = pool
        self.concat_inputs, self.with_cp = concat_inputs, with_cp
        num_splits = len(self.in_strides) - 1
        depths = depth if isinstance(depth, Sequence) else (depth,) * num_splits
        if len(depths) != num_splits or not all(is_whole(n) and n >= 0 for n in depths):
            raise ValueError(
                f'`depth` must be one number, or {num_splits} for {num_splits} splittings, '
                f'but got {depth!r}'
            )

        top = self.in_strides[-1]
        needed = {min(stride, top) for stride in self.out_strides}  # coarser ones are pooled
        self._levels = tuple(stride for stride in self.in_strides if stride in needed)
        channels = dict(zip(self.in_strides, self.in_channels, strict=True))

        self.laterals, self.splits, self.blocks = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for stride, num_blocks in zip(self.in_strides[:-1], depths, strict=True):
            if stride < self._levels[0]:
                continue
            above = channels[top] if 2 * stride == top else out_channels
            self.laterals[f'p{stride}'] = Linear(channels[stride], out_channels, bias=bias)
            self.splits[f'p{stride}'] = PatchSplit(above, out_channels, bias, norm_eps)
            self.blocks[f'p{stride}'] = nn.Sequential(
                *(MlpBlock(out_channels, mlp_ratio, norm_eps=norm_eps) for _ in range(num_blocks))
            )
        if top in self._levels and channels[top] != out_channels:
            self.laterals[f'p{top}'] = Linear(channels[top], out_channels)
        self.outputs = nn.ModuleDict(
            {f'p{s}': MlpBlock(out_channels, mlp_ratio, norm_eps=norm_eps) for s in self._levels}
        )
        extra = {s: channels[min(s, top)] if concat_inputs else 0 for s in self.out_strides}
        self.level_channels = tuple(out_channels + extra[s] for s in self.out_strides)
        self.apply(init_linear)

    def _check_strides(self) -> None:
        ins, outs = self.in_strides, self.out_strides
        if len(ins) != len(self.in_channels):
            raise ValueError(
                f'`in_channels` {self.in_channels} and `in_strides` {ins} must be of one length'
            )
        if not ins or any(b != 2 * a for a, b in zip(ins, ins[1:])):
            raise ValueError(f'`in_strides` must double from one to the next, but got {ins}')
        allowed = ins + tuple(ins[-1] * 2**k for k in range(1, 4))
        if not outs or list(outs) != sorted(set(outs)) or any(s not in allowed for s in outs):
            raise ValueError(f'`out_strides` must be rising and out of {allowed}, but got {outs}')

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, C, H / s, W / s) of the backbone -> maps (B, F, H / s, W / s) of the pyramid."""
        maps = [x.permute(0, 2, 3, 1) for x in inputs]
        self._check_maps(maps)
        # Contiguous, because mmcv's operators (RoIAlign, deformable convolution) read memory as (B,
        # C, H, W).
        levels = {
            s: x.permute(0, 3, 1, 2).contiguous() for s, x in self.forward_levels(maps).items()
        }
        if self.concat_inputs:
            backbone = dict(zip(self.in_strides, inputs, strict=True))
            levels = {s: torch.cat([x, backbone[s]], dim=1) for s, x in levels.items()}
        stride = self.in_strides[-1]
        while stride < self.out_strides[-1]:
            levels[2 * stride] = self._pool(levels[stride], 2 * stride)
            stride *= 2
        return tuple(levels[s] for s in self.out_strides)

    def forward_levels(self, maps: Sequence[Tensor]) -> dict[int, Tensor]:
        """The levels V^s that are not pooled, by stride (Equation 3).

        Args:
            maps: U^s, channels last (N, H, W, C), of a whole image or of some patches; as of
                :meth:`itpn_mm.backbones.HiViT.forward_stages`.

        Returns:
            Stride -> (N, H, W, F).
        """
        top = self.in_strides[-1]
        laterals = dict(zip(self.in_strides, maps, strict=True))
        x, levels = laterals[top], {}
        if top in self._levels:
            name = f'p{top}'
            lateral = self.laterals[name](x) if name in self.laterals else x
            levels[top] = self._run_block(self.outputs[name], lateral)
        for stride in reversed(self.in_strides[:-1]):
            name = f'p{stride}'
            if name not in self.splits:
                break
            x = self.splits[name](x) + self.laterals[name](laterals[stride])
            for block in self.blocks[name]:
                x = self._run_block(block, x)
            if stride in self._levels:
                levels[stride] = self._run_block(self.outputs[name], x)
        return levels

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _check_maps(self, maps: list[Tensor]) -> None:
        found = tuple(x.shape[-1] for x in maps)
        if found != self.in_channels:
            raise ValueError(
                f'`in_channels` of the neck is {self.in_channels}, but the backbone gives maps of '
                f'{found} channels; set neck.in_channels={found} or change `out_indices` of the '
                'backbone'
            )
        for fine, coarse in zip(maps, maps[1:]):
            if fine.shape[1:3] != (2 * coarse.shape[1], 2 * coarse.shape[2]):
                raise ValueError(
                    'maps of neighbouring strides must differ by a factor of 2, but got '
                    f'{tuple(fine.shape[1:3])} and {tuple(coarse.shape[1:3])}; pad images to a '
                    f'multiple of {self.in_strides[-1]} (`pad_size_divisor` of the data '
                    'preprocessor)'
                )

    def _pool(self, x: Tensor, stride: int) -> Tensor:
        if min(x.shape[2:]) < 2:
            raise ValueError(
                f'the image is too small for a level of stride {stride}: the level below is '
                f'{tuple(x.shape[2:])}; leave {stride} out of `out_strides` or take images of at '
                f'least {stride} pixels'
            )
        return POOLS[self.pool](x, 2)
