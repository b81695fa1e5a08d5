"""Integral pre-training with a frozen teacher, such as CLIP (Section 3.4, option ii)."""

from collections.abc import Sequence

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from itpn_mm.layers import TokenGrid
from itpn_mm.registry import MODELS

from .fits import chain_fits, check_fits


@MODELS.register_module()
class iTPNDistill(BaseSelfSupervisor):
    """Backbone and pyramid trained to give the features that a teacher makes of the whole image.

    Mask tokens take the place of masked patches before stage 3; the levels of the pyramid are added
    up and predict the teacher's tokens, and so does, in the released iTPN, an auxiliary head from
    within stage 3.

    Args:
        backbone: Config of a :class:`itpn_mm.backbones.HiViT`; all three stages are used.
        neck: Config of a :class:`itpn_mm.necks.TransformerPyramidNeck` with the levels that the
            decoder reads.
        decoder: Config of a :class:`LevelSum`.
        head: Config of a :class:`CLIPDistillHead`.
        aux_head: Config of an :class:`AuxiliaryHead`, or ``None`` (Fast-iTPN).
        teacher: Config of a :class:`CLIPTeacher`, :class:`FeatureTeacher` or
            :class:`CachedTeacher`; ``None`` for a model that is not trained. Its weights are not in
            the state dict.
        mask_laterals: Whether the pyramid sees nothing of masked patches at strides 4 and 8, where
            their features are set to zero. ``False``, as released, lets it read them.
        data_preprocessor: mmpretrain's ``TwoNormDataPreprocessor``: one view for the student, one
            for the teacher.
        init_cfg: As in mmengine.

    Raises:
        ValueError: Parts do not fit each other; the message names sizes that would.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        decoder: dict,
        head: dict,
        aux_head: dict | None = None,
        teacher: dict | None = None,
        mask_laterals: bool = True,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.mask_laterals = mask_laterals
        self.decoder = MODELS.build(decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.backbone.embed_dims))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.aux_head = None if aux_head is None else self._build_aux_head(aux_head)
        self.teacher = None if teacher is None else MODELS.build(teacher)
        self._check_parts()

    def _build_aux_head(self, aux_head: dict) -> nn.Module:
        """The head, with the stochastic depth of the blocks beside it."""
        blocks = self.backbone.stages[2]
        tap, num_blocks = aux_head.get('tap', 0.75), aux_head.get('num_blocks', 2)
        start = int(tap * len(blocks))
        beside = blocks[start:][:num_blocks]
        if len(beside) < num_blocks:
            raise ValueError(
                f'`aux_head` reads stage 3 after block {start} and has {num_blocks} blocks beside '
                f'those from there on, but the backbone has {len(blocks)} blocks: take a smaller '
                '`aux_head.tap` or a deeper backbone, or set aux_head=None'
            )
        rates = [block.drop_path.rate for block in beside]
        return MODELS.build(aux_head, default_args=dict(drop_path_rates=rates))

    def _check_parts(self) -> None:
        backbone, neck, decoder = self.backbone, self.neck, self.decoder
        head, aux = self.head, self.aux_head
        fits = [
            *chain_fits(backbone, neck, decoder),
            ('head.in_channels', head.in_channels, 'decoder.embed_dims', decoder.embed_dims),
        ]
        if aux is not None:
            width = backbone.embed_dims
            fits += [
                ('aux_head.in_channels', aux.in_channels, 'backbone.embed_dims', width),
                ('aux_head.target_dims', aux.target_dims, 'head.target_dims', head.target_dims),
            ]
        if self.teacher is not None:
            width = self.teacher.embed_dims
            fits.append(('head.target_dims', head.target_dims, 'teacher.embed_dims', width))
        check_fits(fits)
        if self.teacher is not None:
            self._check_grids()

    def _check_grids(self) -> None:
        student, teacher = self.backbone.grid, self.teacher.grid
        if student == teacher:
            return
        p, q = self.backbone.patch_size, self.teacher.patch_size
        raise ValueError(
            f'student and teacher must have the same grid of tokens, but `backbone` has '
            f'{student[0]} x {student[1]} and `teacher` {teacher[0]} x {teacher[1]} (patches of '
            f'{q} pixels): set teacher.img_size={student[0] * q}, and `second_size` in the '
            f'pipeline, or backbone.img_size={teacher[0] * p}, and `size` in the pipeline'
        )

    def encode(
        self, images: Tensor, mask: Tensor
    ) -> tuple[dict[int, Tensor], Tensor | None, TokenGrid]:
        """Pyramid of images whose patches are masked.

        Args:
            images: Images (B, 3, H, W).
            mask: Masked patches (B, L), bool, row-major.

        Returns:
            Levels by stride, (B, H / s, W / s, F); the tokens (B, L, E) that the auxiliary head
            reads, ``None`` if there is none; and their grid.
        """
        backbone = self.backbone
        *laterals, x, tokens = backbone.forward_stem(images)
        shape = x.shape
        if mask.shape != (shape[0], shape[1] * shape[2]):
            raise ValueError(
                f'masks must be one for each of {shape[0]} images of {shape[1]} x {shape[2]} '
                f'patches, but got {tuple(mask.shape)}: set `input_size` of the BEiTMaskGenerator '
                'to the grid'
            )
        if self.mask_laterals:
            laterals = [hide(u, mask, shape[1:3]) for u in laterals]
        x = torch.where(mask.unsqueeze(-1), self.mask_token.to(x.dtype), x.flatten(1, 2))
        x = backbone.add_positions(x, tokens)
        tapped, prefix = None, backbone.num_prefix_tokens
        if self.aux_head is None:
            x = backbone.run_blocks(x, tokens)
        else:
            stop = int(self.aux_head.tap * len(backbone.stages[2])) + 1
            x = backbone.run_blocks(x, tokens, stop=stop)
            tapped = x[:, prefix:]
            x = backbone.run_blocks(x, tokens, start=stop)
        levels = self.neck.forward_levels([*laterals, x[:, prefix:].reshape(shape)])
        return levels, tapped, tokens

    def loss(self, inputs: Sequence[Tensor], data_samples: list) -> dict[str, Tensor]:
        """Losses of a batch, by name.

        Args:
            inputs: Normalised views of the student (B, 3, H, W) and of the teacher (B, 3, H', W').
            data_samples: Samples with a field ``mask`` (h, w), non-zero where masked.
        """
        if self.teacher is None:
            raise RuntimeError('`teacher` is None: a model without a teacher cannot be trained')
        images, view = inputs
        masks = [torch.as_tensor(sample.mask).flatten() for sample in data_samples]
        mask = torch.stack(masks).to(images.device, torch.bool)
        return self.loss_of_target(images, mask, self.teacher(view))

    def loss_of_target(self, images: Tensor, mask: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses for given masks (B, L) and teacher's tokens (B, L, T)."""
        levels, tapped, tokens = self.encode(images, mask)
        losses = self.head.loss(self.decoder(levels), tokens, mask, target)
        if self.aux_head is not None:
            losses.update(self.aux_head.loss(tapped, tokens, mask, target))
        return losses


def hide(x: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Set the sub-tokens (B, h * k, w * k, C) of masked patches (B, h * w) to zero."""
    k = x.shape[1] // grid[0]
    mask = mask.unflatten(1, grid).repeat_interleave(k, 1).repeat_interleave(k, 2)
    return x.masked_fill(mask.unsqueeze(-1), 0)
