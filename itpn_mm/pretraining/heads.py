"""Reconstruction heads: each gives named losses (paper, Equation 4)."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from itpn_mm.layers import patchify, unpatchify
from itpn_mm.layers.arguments import (
    are_sizes,
    check_flags,
    check_positive,
    check_sizes,
    is_number,
)
from itpn_mm.layers.migration import take_tokens
from itpn_mm.registry import MODELS

from .masking import PatchMask


@MODELS.register_module()
class PixelReconstructionHead(BaseModule):
    """Masked image modelling: pixels of the masked patches (first term of Equation 4).

    Args:
        embed_dims: Width D of the decoder.
        patch_size: Side of a patch in pixels.
        in_channels: Channels of an image.
        norm_pix: Whether each patch is normalised to mean 0 and (unbiased) variance 1 before it is
            a target.
        loss_weight: Weight of the loss.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        embed_dims: int = 512,
        patch_size: int = 16,
        in_channels: int = 3,
        norm_pix: bool = True,
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_sizes(embed_dims=embed_dims, patch_size=patch_size, in_channels=in_channels)
        check_flags(norm_pix=norm_pix)
        check_positive(loss_weight=loss_weight)
        self.embed_dims, self.patch_size, self.in_channels = embed_dims, patch_size, in_channels
        self.norm_pix, self.loss_weight = norm_pix, loss_weight
        self.pred = nn.Linear(embed_dims, patch_size**2 * in_channels)
        nn.init.xavier_uniform_(self.pred.weight)
        nn.init.zeros_(self.pred.bias)

    def loss(self, tokens: Tensor, images: Tensor, mask: PatchMask) -> dict[str, Tensor]:
        """Mean squared error over the pixels of the masked patches.

        Args:
            tokens: Decoder's tokens (B, L, D).
            images: Normalised images (B, 3, H, W).
            mask: Visible and masked patches.
        """
        pred = self.pred(take_tokens(tokens, mask.masked)).float()
        target, _, _ = self._targets(take_tokens(patchify(images, self.patch_size), mask.masked))
        return dict(loss_pixel=self.loss_weight * F.mse_loss(pred, target))

    def reconstruct(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Predicted images (B, 3, H, W); ``norm_pix``: with each patch's true mean and scale."""
        _, mean, std = self._targets(patchify(images, self.patch_size))
        grid = tuple(n // self.patch_size for n in images.shape[2:])
        return unpatchify(self.pred(tokens).float() * std + mean, grid, self.patch_size)

    def _targets(self, patches: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Targets of patches (B, M, p * p * 3), and the mean and scale they were normalised by."""
        patches = patches.float()
        if not self.norm_pix:
            return patches, 0.0, 1.0
        mean = patches.mean(dim=-1, keepdim=True)
        std = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        return (patches - mean) / std, mean, std


@MODELS.register_module()
class MFMHead(BaseModule):
    """Masked feature modelling: the teacher's features of every stage (second term of Equation 4).

    Targets are the teacher's stage outputs, predictions are linear (Section 3.3). What the paper
    leaves open was compared in docs/pretraining.md.

    Args:
        stage_channels: Channels of the teacher's stages, finest first.
        strides: Strides of those stages; the last is that of a patch.
        positions: ``'masked'``: the decoder's tokens of the masked patches, which come from the sum
            of all V^s, predict what a teacher that sees those patches makes of them. ``'visible'``:
            each V^s predicts, in place, what a teacher that sees the visible patches makes of them.
        in_channels: Channels read: the decoder's width D for ``'masked'``, the pyramid's F for
            ``'visible'``.
        loss_weight: The paper's lambda.
        norm_targets: Whether targets are layer-normalised per token, without affine parameters, so
            that their scale cannot collapse.

    Raises:
        ValueError: Unknown ``positions``, ``loss_weight`` not above 0, or stages and strides of
            different numbers.
    """

    def __init__(
        self,
        stage_channels: Sequence[int] = (128, 256, 512),
        strides: Sequence[int] = (4, 8, 16),
        positions: str = 'masked',
        in_channels: int = 512,
        loss_weight: float = 0.3,
        norm_targets: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if positions not in ('masked', 'visible'):
            raise ValueError(
                f"`positions` of MFMHead must be 'masked' or 'visible', but got {positions!r}"
            )
        for name, sizes in (('stage_channels', stage_channels), ('strides', strides)):
            if not are_sizes(sizes):
                raise ValueError(
                    f'`{name}` of MFMHead must be numbers of at least 1, but got {sizes!r}'
                )
        check_sizes(in_channels=in_channels)
        check_flags(norm_targets=norm_targets)
        if not is_number(loss_weight) or loss_weight <= 0:
            raise ValueError(
                f'`loss_weight` of MFMHead must be above 0, but got {loss_weight!r}: the teacher '
                'would run for nothing; '
                'to train without feature targets leave out `mfm_head` and `teacher`'
            )
        self.stage_channels, self.strides = tuple(stage_channels), tuple(strides)
        if len(self.stage_channels) != len(self.strides):
            raise ValueError(
                f'`stage_channels` {self.stage_channels} and `strides` {self.strides} of MFMHead '
                'must be of one length'
            )
        self.positions, self.in_channels, self.loss_weight = positions, in_channels, loss_weight
        self.norm_targets = norm_targets
        # Sub-tokens along the side of a patch.
        self.sides = {s: self.strides[-1] // s for s in self.strides}
        self.projs = nn.ModuleDict()
        for stride, channels in zip(self.strides, self.stage_channels, strict=True):
            num_tokens = self.sides[stride] ** 2 if positions == 'masked' else 1
            self.projs[f'p{stride}'] = nn.Linear(in_channels, num_tokens * channels)
        for proj in self.projs.values():
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def target_patches(self, mask: PatchMask) -> Tensor:
        """Patches that the teacher has to see."""
        return mask.masked if self.positions == 'masked' else mask.keep

    def loss(
        self, tokens: Tensor, levels: dict[int, Tensor], mask: PatchMask, targets: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Mean squared error of each stage.

        Args:
            tokens: Decoder's tokens (B, L, D).
            levels: Pyramid levels of the visible patches by stride, (B, V * k, k, F).
            mask: Visible and masked patches.
            targets: Teacher's stages (B, N * k, k, C) for the N patches of :meth:`target_patches`.
        """
        losses = {}
        for stride, target in zip(self.strides, targets, strict=True):
            x = take_tokens(tokens, mask.masked) if self.positions == 'masked' else levels[stride]
            pred = self.projs[f'p{stride}'](x).view(target.shape).float()
            target = target.float()
            if self.norm_targets:
                target = F.layer_norm(target, target.shape[-1:])
            losses[f'loss_mfm_p{stride}'] = self.loss_weight * F.mse_loss(pred, target)
        return losses
