"""MaskDINO (Li et al., 2023, arXiv 2206.02777) from the backbone's maps to losses and predictions.

The heads of mmdet and mmseg inherit from :class:`MaskDINOBase` and translate their annotations.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from itpn_mm.layers.arguments import check_flags, check_sizes

from .criterion import LOSSES, MASK_LOSSES, MaskDINOCriterion
from .padding import Size, extend_image, find_image, find_ratios
from .pixel_decoder import MaskDINOPixelDecoder
from .predictor import MaskDINOPredictor, Outputs, predict_masks
from .targets import Target

FOCAL = dict(
    type='mmdet.FocalLoss',
    use_sigmoid=True,
    gamma=2.0,
    alpha=0.25,
    reduction='sum',
    loss_weight=4.0,
)
MASK = dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0)
DICE = dict(type='mmdet.DiceLoss', naive_dice=True, eps=1.0, loss_weight=5.0)
L1 = dict(type='mmdet.L1Loss', loss_weight=5.0)
GIOU = dict(type='mmdet.GIoULoss', loss_weight=2.0)


class MaskDINOBase(BaseModule):
    """Pixel decoder, predictor and criterion.

    Args:
        num_classes: Classes K.
        in_channels: Channels of the backbone's maps, the finest (stride 4) first.
        num_queries: Queries M.
        feat_channels: Channels of tokens and queries.
        out_channels: Channels of mask features.
        pixel_decoder: More arguments of :class:`MaskDINOPixelDecoder`.
        transformer_decoder: More arguments of :class:`MaskDINODecoder`.
        two_stage: See :class:`MaskDINOPredictor`.
        learned_content: See there.
        box_init: See there.
        proposal_sizes: See there.
        double_norm: See there; released weights need it.
        denoising: Arguments of :class:`QueryDenoiser`; `None` for no denoising.
        mask_padding: What is padded is no part of the image: it is not looked at, and boxes are
            fractions of the image without it. Released weights were trained without.
        num_boxed_classes: See :class:`MaskDINOCriterion`.
        loss_cls: Config of a FocalLoss, or of a CrossEntropyLoss with `use_sigmoid=False` and
            `class_weight` for K classes and "no object".
        loss_mask: See :class:`MaskDINOCriterion`.
        loss_dice: See there.
        loss_bbox: See there.
        loss_iou: See there.
        train_cfg: `num_points`, `oversample_ratio`, `importance_sample_ratio` and `match_costs` of
            :class:`MaskDINOCriterion`.
        test_cfg: For whoever makes results of predictions.
        init_cfg: Initialisation config.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        num_queries: int = 300,
        feat_channels: int = 256,
        out_channels: int = 256,
        pixel_decoder: dict | None = None,
        transformer_decoder: dict | None = None,
        two_stage: bool = True,
        learned_content: bool = False,
        box_init: str = 'no',
        proposal_sizes: Sequence[float] | None = None,
        double_norm: bool = False,
        denoising: dict | None = None,
        mask_padding: bool = True,
        num_boxed_classes: int | None = None,
        loss_cls: dict = FOCAL,
        loss_mask: dict = MASK,
        loss_dice: dict = DICE,
        loss_bbox: dict = L1,
        loss_iou: dict = GIOU,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_sizes(num_classes=num_classes)
        check_flags(mask_padding=mask_padding)
        self.num_classes = num_classes
        self.mask_padding = mask_padding
        self.test_cfg = test_cfg or {}
        self.pixel_decoder = MaskDINOPixelDecoder(
            in_channels,
            feat_channels=feat_channels,
            out_channels=out_channels,
            **(pixel_decoder or {}),
        )
        no_object = not loss_cls.get('use_sigmoid', False)
        if no_object and len(loss_cls.get('class_weight') or ()) != num_classes + 1:
            raise ValueError(
                f'`loss_cls.class_weight` must have {num_classes + 1} numbers, one for each class '
                f'and one for "no object", got {loss_cls.get("class_weight")}'
            )
        self.predictor = MaskDINOPredictor(
            num_classes,
            num_queries=num_queries,
            embed_dims=feat_channels,
            mask_dims=out_channels,
            no_object=no_object,
            two_stage=two_stage,
            learned_content=learned_content,
            box_init=box_init,
            proposal_sizes=proposal_sizes,
            double_norm=double_norm,
            decoder=dict(num_levels=self.pixel_decoder.num_levels, **(transformer_decoder or {})),
            denoising=denoising,
        )
        denoiser = self.predictor.denoiser
        if denoiser is None:
            denoising_losses = ()
        else:
            denoising_losses = [x for x in LOSSES if denoiser.masks or x not in MASK_LOSSES]
        self.criterion = MaskDINOCriterion(
            num_classes,
            loss_cls=loss_cls,
            loss_mask=loss_mask,
            loss_dice=loss_dice,
            loss_bbox=loss_bbox,
            loss_iou=loss_iou,
            num_boxed_classes=num_boxed_classes,
            denoising_losses=denoising_losses,
            denoising_start=two_stage,
            **(train_cfg or {}),
        )

    @property
    def no_object(self) -> bool:
        """Whether there is a logit for "no object"."""
        return self.predictor.no_object

    def segment(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[Size] | None = None,
        batch_size: Size | None = None,
        targets: Sequence[Target] | None = None,
    ) -> Outputs:
        """Predict.

        Args:
            maps: Of the backbone or neck, (B, in_channels[i], H_i, W_i).
            sizes: Of the images without padding; `None` where there is none.
            batch_size: Of the padded batch; goes with `sizes`.
            targets: For denoising, in training.

        Raises:
            ValueError: The maps are not those that `in_channels` names.
        """
        found, wanted = tuple(level.shape[1] for level in maps), self.pixel_decoder.in_channels
        if found != wanted:
            raise ValueError(f'`in_channels` is {wanted}, but the maps have {found} channels')
        ratios = None
        if sizes is not None and self.mask_padding:
            ratios = find_ratios(sizes, batch_size, maps[0].device)
        mask_features, memory = self.pixel_decoder(maps, ratios)
        return self.predictor(memory, mask_features, targets)

    def fit_masks(self, masks: Tensor, size: Size, batch_size: Size) -> Tensor:
        """Masks (n, H, W), padded or not -> of what counts as the image."""
        height, width = size if self.mask_padding else batch_size
        masks = masks[:, :height, :width]
        return F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))

    @staticmethod
    def last_predictions(outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """What the last layer says, in single precision.

        Returns:
            Logits of classes (B, M, K or K + 1), boxes (B, M, 4), and logits of masks (B, M, H, W),
            which go on in padding as at the image's border, so that they can be resized.
        """
        cls_logits, boxes, mask_embeds = next(iter(outputs.matching))
        masks = predict_masks(mask_embeds, outputs.mask_features)
        if outputs.ratios is not None:
            masks = extend_image(masks, find_image(outputs.ratios, masks.shape[-2:]))
        return cls_logits.float(), boxes.float(), masks.float()

    def losses(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[Size],
        batch_size: Size,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Losses by name."""
        return self.criterion(self.segment(maps, sizes, batch_size, targets), targets)
