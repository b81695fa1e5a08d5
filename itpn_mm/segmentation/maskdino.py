"""MaskDINO for semantic segmentation in mmseg."""

from collections.abc import Sequence

from mmseg.structures import SegDataSample
from torch import Tensor

from itpn_mm.maskdino import MaskDINOBase
from itpn_mm.maskdino.inference import TEMPERATURE, class_scores, resize, segment_classes
from itpn_mm.maskdino.padding import Size
from itpn_mm.maskdino.targets import Target
from itpn_mm.registry import MODELS


@MODELS.register_module()
class MaskDINODecodeHead(MaskDINOBase):
    """Decode head of mmseg's EncoderDecoder: a query finds all pixels of a class.

    Args:
        num_classes: Classes K.
        num_queries: Queries.
        two_stage: See :class:`itpn_mm.maskdino.MaskDINOBase`; the authors use one stage here.
        ignore_index: Label of pixels that belong to no class.
        align_corners: How mmseg resizes the result to the image file.
        temperature: Without a logit for "no object", sharpens class scores; see
            :func:`itpn_mm.maskdino.inference.class_scores`.
        **kwargs: Of :class:`itpn_mm.maskdino.MaskDINOBase`.
    """

    def __init__(
        self,
        num_classes: int,
        num_queries: int = 100,
        two_stage: bool = False,
        ignore_index: int = 255,
        align_corners: bool = False,
        temperature: float | None = TEMPERATURE,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, num_queries=num_queries, two_stage=two_stage, **kwargs)
        self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.temperature = temperature

    def loss(
        self,
        inputs: Sequence[Tensor],
        batch_data_samples: Sequence[SegDataSample],
        train_cfg: dict | None = None,
    ) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            inputs: Maps (B, in_channels[i], H_i, W_i).
            batch_data_samples: With `gt_sem_seg`.
            train_cfg: Of the segmentor; not used.
        """
        maps = [sample.gt_sem_seg.data[0] for sample in batch_data_samples]
        batch_size = tuple(maps[0].shape)
        sizes = [tuple(sample.metainfo['img_shape'][:2]) for sample in batch_data_samples]
        targets = [
            self._target(labels, size, batch_size) for labels, size in zip(maps, sizes, strict=True)
        ]
        return self.losses(inputs, sizes, batch_size, targets)

    def _target(self, labels: Tensor, size: Size, batch_size: Size) -> Target:
        """One object for each class of a map (H, W)."""
        classes = labels.unique()
        classes = classes[classes != self.ignore_index].long()
        masks = self.fit_masks(labels == classes[:, None, None], size, batch_size)
        return Target.from_masks(classes, masks)

    def forward(
        self,
        inputs: Sequence[Tensor],
        sizes: Sequence[Size] | None = None,
        batch_size: Size | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores of classes (B, M, K) of queries and logits of their masks (B, M, H_0, W_0)."""
        outputs = self.segment(inputs, sizes, batch_size)
        cls_logits, _, masks = self.last_predictions(outputs)
        return class_scores(cls_logits, self.no_object, self.temperature), masks

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: Sequence[dict], test_cfg: dict
    ) -> Tensor:
        """Score of each class at each pixel (B, K, H, W) of the network's input.

        Args:
            inputs: Maps (B, in_channels[i], H_i, W_i).
            batch_img_metas: Sizes of the images and of the batch.
            test_cfg: Of the segmentor, which says whether inputs are windows.
        """
        first = batch_img_metas[0]
        if test_cfg['mode'] == 'slide':  # mmseg puts the window's size there
            sizes, batch_size = None, tuple(first['img_shape'])
        else:
            sizes = [tuple(meta['img_shape'][:2]) for meta in batch_img_metas]
            batch_size = tuple(first.get('pad_shape', first['img_shape'])[:2])
        scores, masks = self(inputs, sizes, batch_size)
        return segment_classes(scores, resize(masks, batch_size))
