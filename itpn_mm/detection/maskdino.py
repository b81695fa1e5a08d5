"""MaskDINO for instance and panoptic segmentation in mmdet."""

import functools
from collections.abc import Callable, Sequence

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models import MaskFormer, MaskFormerFusionHead
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from itpn_mm.maskdino import MaskDINOBase
from itpn_mm.maskdino.inference import (
    best_instances,
    mask_quality,
    resize,
    segment_all,
)
from itpn_mm.maskdino.padding import Size, find_ratios
from itpn_mm.maskdino.targets import Target
from itpn_mm.registry import MODELS


@MODELS.register_module()
class MaskDINOHead(MaskDINOBase):
    """Head of :class:`MaskDINO`.

    Args:
        num_things_classes: Classes of single objects; they come first.
        num_stuff_classes: Classes of regions, for panoptic segmentation.
        stuff_boxes: Regions have losses of boxes, too.
        **kwargs: Of :class:`itpn_mm.maskdino.MaskDINOBase`.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
        stuff_boxes: bool = True,
        **kwargs: object,
    ) -> None:
        super().__init__(
            num_classes=num_things_classes + num_stuff_classes,
            num_boxed_classes=None if stuff_boxes else num_things_classes,
            **kwargs,
        )
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes

    def loss(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses by name.

        Args:
            x: Maps (B, in_channels[i], H_i, W_i).
            batch_data_samples: With `gt_instances.labels` and `.masks`, and for panoptic
                segmentation `gt_sem_seg`. Ignored instances (of crowds) take no part.
        """
        sizes, batch_size = _sizes(batch_data_samples)
        targets = [
            self._target(sample, size, batch_size)
            for sample, size in zip(batch_data_samples, sizes, strict=True)
        ]
        return self.losses(x, sizes, batch_size, targets)

    def _target(self, sample: DetDataSample, size: Size, batch_size: Size) -> Target:
        objects = sample.gt_instances
        labels = objects.labels
        masks = objects.masks.to_tensor(torch.bool, labels.device)
        masks = self.fit_masks(masks, size, batch_size)
        if 'gt_sem_seg' in sample:
            regions = sample.gt_sem_seg.sem_seg[0]
            stuff = regions.unique()
            stuff = stuff[(stuff >= self.num_things_classes) & (stuff < self.num_classes)].long()
            labels = torch.cat((labels, stuff))
            regions = self.fit_masks(regions == stuff[:, None, None], size, batch_size)
            masks = torch.cat((masks, regions))
        return Target.from_masks(labels, masks)

    def forward(
        self, x: Sequence[Tensor], batch_data_samples: SampleList | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict.

        Returns:
            Logits of classes (B, M, K or K + 1), boxes (B, M, 4), centre and size, as fractions of
            the image, and logits of masks (B, M, H_0, W_0) of the padded batch.
        """
        sizes, batch_size = _sizes(batch_data_samples) if batch_data_samples else (None, None)
        outputs = self.segment(x, sizes, batch_size)
        cls_logits, boxes, masks = self.last_predictions(outputs)
        if sizes is not None and not self.mask_padding:
            ratios = find_ratios(sizes, batch_size, boxes.device)
            boxes = boxes if ratios is None else boxes / ratios.repeat(1, 2)[:, None]
        return cls_logits, boxes, masks

    predict = forward


@MODELS.register_module()
class MaskDINOFusionHead(MaskFormerFusionHead):
    """Makes instances and panoptic maps of what :class:`MaskDINOHead` predicts.

    `test_cfg` may have:

    * `panoptic_on`, `instance_on`: which results are made; the first only by default. With both,
      instances of regions are left out.
    * `max_per_image`: instances of an image, 100.
    * `mask_score`: the score of an instance is that of its class times the mean probability inside
      its mask, and not that of its class alone; true.
    * `object_mask_thr`, `iou_thr`, `temperature`: of
      :func:`itpn_mm.maskdino.inference.segment_all`.

    Args:
        *args: Of mmdet's MaskFormerFusionHead.
        **kwargs: Of mmdet's MaskFormerFusionHead.

    Raises:
        ValueError: `test_cfg` has something else.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        options = dict(self.test_cfg or {})
        self.panoptic_on = options.pop('panoptic_on', True)
        self.instance_on = options.pop('instance_on', False)
        self.max_per_image = options.pop('max_per_image', 100)
        self.mask_score = options.pop('mask_score', True)
        self.thresholds = {
            name: options.pop(name)
            for name in ('object_mask_thr', 'iou_thr', 'temperature')
            if name in options
        }
        if options:
            raise ValueError(f'`test_cfg` has {sorted(options)}, which MaskDINO does not know')

    def predict(
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        mask_logits: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
        no_object: bool = False,
    ) -> list[dict]:
        """Make results of what the head predicts.

        Args:
            cls_logits: (B, M, K), or K + 1 with `no_object`.
            boxes: (B, M, 4), centre and size, as fractions of the image.
            mask_logits: (B, M, H, W) of the padded batch.
            batch_data_samples: Of the images.
            rescale: Results are of the size of the image file, and not of the network's input.
            no_object: There is a logit for "no object".
        """
        sizes, batch_size = _sizes(batch_data_samples)
        results = []
        for index, (sample, size) in enumerate(zip(batch_data_samples, sizes, strict=True)):
            wanted = tuple(sample.ori_shape[:2]) if rescale else size
            to_image = functools.partial(
                _to_image, size=size, batch_size=batch_size, original=wanted
            )
            classes, masks = cls_logits[index], mask_logits[index]
            result = {}
            if self.panoptic_on:
                result['pan_results'] = self._panoptic(classes, to_image(masks), no_object)
            if self.instance_on:
                corners = bbox_cxcywh_to_xyxy(boxes[index])
                corners = corners * corners.new_tensor(wanted[::-1]).repeat(2)
                result['ins_results'] = self._instances(
                    classes, corners, masks, to_image, no_object
                )
            results.append(result)
        return results

    def _panoptic(self, cls_logits: Tensor, mask_logits: Tensor, no_object: bool) -> PixelData:
        segments, labels = segment_all(
            cls_logits, mask_logits, no_object, self.num_things_classes, **self.thresholds
        )
        # mmdet's code of a segment; no segment is the class after the last
        codes = [self.num_classes]
        for number, label in enumerate(labels, start=1):
            codes.append(label + (label < self.num_things_classes) * number * INSTANCE_OFFSET)
        return PixelData(sem_seg=torch.tensor(codes, device=segments.device)[segments][None])

    def _instances(
        self,
        cls_logits: Tensor,
        boxes: Tensor,
        mask_logits: Tensor,
        to_image: Callable[[Tensor], Tensor],
        no_object: bool,
    ) -> InstanceData:
        scores, labels, queries = best_instances(cls_logits, no_object, self.max_per_image)
        if self.panoptic_on:
            things = labels < self.num_things_classes
            scores, labels, queries = scores[things], labels[things], queries[things]
        chosen, place = queries.unique(return_inverse=True)  # a query may have several labels
        masks = to_image(mask_logits[chosen])
        if self.mask_score:
            scores = scores * mask_quality(masks)[place]
        return InstanceData(
            bboxes=boxes[queries], labels=labels, scores=scores, masks=(masks > 0)[place]
        )


@MODELS.register_module()
class MaskDINO(MaskFormer):
    """MaskDINO (Li et al., 2023, arXiv 2206.02777) for instance and panoptic segmentation.

    Takes the arguments of mmdet's MaskFormer, with a :class:`MaskDINOHead` and a
    :class:`MaskDINOFusionHead`.
    """

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Images (B, 3, H, W) -> their samples with `pred_instances`, `pred_panoptic_seg`."""
        predictions = self.panoptic_head.predict(
            self.extract_feat(batch_inputs), batch_data_samples
        )
        results = self.panoptic_fusion_head.predict(
            *predictions, batch_data_samples, rescale, no_object=self.panoptic_head.no_object
        )
        return self.add_pred_to_datasample(batch_data_samples, results)


def _sizes(samples: SampleList) -> tuple[list[Size], Size]:
    """Sizes of the images, and of the batch that they are padded to."""
    sizes = [tuple(sample.img_shape[:2]) for sample in samples]
    return sizes, tuple(samples[0].batch_input_shape)


def _to_image(masks: Tensor, size: Size, batch_size: Size, original: Size) -> Tensor:
    """Masks (M, H, W) of the padded batch -> (M, H, W) of the image."""
    masks = resize(masks[None], batch_size)[..., : size[0], : size[1]]
    return resize(masks, original)[0]
