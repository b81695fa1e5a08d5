"""Integral pre-training of backbone and pyramid (paper, Section 3)."""

from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from itpn_mm.registry import MODELS

from .fits import chain_fits, check_fits
from .masking import PatchMask


@MODELS.register_module()
class iTPN(BaseSelfSupervisor):
    """Backbone, pyramid and decoder trained by masked image and feature modelling (Equation 4).

    The visible patches go through backbone and pyramid, the decoder fills in the masked ones, and
    the heads compare with pixels and, if there is a teacher, with its features.

    Args:
        backbone: Config of a :class:`itpn_mm.backbones.HiViT`; all three stages are used.
        neck: Config of a :class:`itpn_mm.necks.TransformerPyramidNeck` with the levels that the
            decoder reads.
        decoder: Config of a :class:`MIMDecoder`.
        head: Config of a :class:`PixelReconstructionHead`.
        masking: Config of a :class:`RandomMasking`.
        mfm_head: Config of an :class:`MFMHead`; needs ``teacher``.
        teacher: Config of an :class:`EMATeacher`; needs ``mfm_head``.
        data_preprocessor: As in mmpretrain.
        init_cfg: As in mmengine.

    Raises:
        ValueError: Parts do not fit each other.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        decoder: dict,
        head: dict,
        masking: dict,
        mfm_head: dict | None = None,
        teacher: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        self.decoder = MODELS.build(decoder)
        self.masking = MODELS.build(masking)
        if (mfm_head is None) != (teacher is None):
            given, absent = ('teacher', 'mfm_head') if mfm_head is None else ('mfm_head', 'teacher')
            raise ValueError(
                f'`{given}` needs `{absent}`: give both for masked feature modelling, or neither'
            )
        self.mfm_head = None if mfm_head is None else MODELS.build(mfm_head)
        self.teacher = (
            None
            if teacher is None
            else MODELS.build(teacher, default_args=dict(backbone=self.backbone))
        )
        self._check_parts()

    def _check_parts(self) -> None:
        backbone, neck, decoder, head, mfm = (
            self.backbone,
            self.neck,
            self.decoder,
            self.head,
            self.mfm_head,
        )
        fits = [
            *chain_fits(backbone, neck, decoder),
            (
                'decoder.strides[-1]',
                decoder.strides[-1],
                'backbone.patch_size',
                backbone.patch_size,
            ),
            ('head.embed_dims', head.embed_dims, 'decoder.embed_dims', decoder.embed_dims),
            ('head.patch_size', head.patch_size, 'backbone.patch_size', backbone.patch_size),
        ]
        if mfm is not None:
            source = 'decoder.embed_dims' if mfm.positions == 'masked' else 'neck.out_channels'
            width = decoder.embed_dims if mfm.positions == 'masked' else neck.out_channels
            fits += [
                ('mfm_head.in_channels', mfm.in_channels, source, width),
                (
                    'mfm_head.stage_channels',
                    mfm.stage_channels,
                    'backbone.out_channels',
                    backbone.out_channels,
                ),
                ('mfm_head.strides', mfm.strides, 'neck.out_strides', neck.out_strides),
            ]
        check_fits(fits)

    def encode(self, images: Tensor, mask: PatchMask) -> dict[int, Tensor]:
        """Pyramid of the visible patches: images (B, 3, H, W) -> {stride: (B, V * k, k, F)}."""
        return self.neck.forward_levels(self.backbone.forward_stages(images, mask.keep))

    def decode(self, levels: dict[int, Tensor], images: Tensor, mask: PatchMask) -> Tensor:
        """Tokens (B, L, D) of all patches from the pyramid of the visible ones."""
        return self.decoder(levels, mask, self._grid(images))

    def loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """Losses of a batch of normalised images (B, 3, H, W), by name."""
        return self.loss_of_mask(inputs, self.draw_mask(inputs))

    def loss_of_mask(self, images: Tensor, mask: PatchMask) -> dict[str, Tensor]:
        """Losses for a given mask: ``loss_pixel``, and ``loss_mfm_p<stride>`` of each stage
        (Equation 4).
        """
        levels = self.encode(images, mask)
        tokens = self.decode(levels, images, mask)
        losses = self.head.loss(tokens, images, mask)
        if self.mfm_head is not None:
            targets = self.teacher(images, self.mfm_head.target_patches(mask))
            losses.update(self.mfm_head.loss(tokens, levels, mask, targets))
        return losses

    def reconstruct(self, images: Tensor, mask: PatchMask) -> Tensor:
        """Predicted images (B, 3, H, W) in the normalised space of ``images``; only masked patches
        are meaningful.
        """
        return self.head.reconstruct(self.decode(self.encode(images, mask), images, mask), images)

    def draw_mask(self, images: Tensor) -> PatchMask:
        """Draw the visible patches of each image."""
        height, width = self._grid(images)
        return self.masking(images.shape[0], height * width, images.device)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        p = self.backbone.patch_size
        height, width = images.shape[2:]
        if height % p or width % p:
            raise ValueError(
                f'pre-training images must be whole patches of {p} x {p} pixels, but got {height} '
                f'x {width}: '
                'set the crop size of the pipeline to a multiple'
            )
        return height // p, width // p
