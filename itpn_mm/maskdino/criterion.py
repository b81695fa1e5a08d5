"""Matching and losses (MaskDINO, Section 3.5).

Masks are compared at points. A logit is linear in the mask features, and so is bilinear sampling:
for matching, features are sampled once for all sets of predictions, and whole masks are computed
for queries that have an object, nowhere else.
"""

from collections.abc import Mapping, Sequence

import torch
from mmcv.ops import point_sample
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .pairs import Pairs
from .points import place, sample_masks, sample_together, uncertain_points
from .precision import single_precision
from .predictor import Outputs, Predictions
from .targets import Target, first_objects

MATCH_COSTS = (
    dict(type='mmdet.FocalLossCost', weight=4.0),
    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
    dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='mmdet.IoUCost', weight=2.0, iou_mode='giou'),
)
MASK_LOSSES = ('loss_mask', 'loss_dice')
LOSSES = ('loss_cls', *MASK_LOSSES, 'loss_bbox', 'loss_iou')


class MaskDINOCriterion(nn.Module):
    """Pairs queries with objects in every set of predictions, and says how far off they are.

    Losses are divided by the number of objects (of a process, on average); those of noisy queries
    also by the number of groups. A cross-entropy is divided by the weights of its queries.

    Args:
        num_classes: Classes K.
        loss_cls: Config of a FocalLoss, or of a CrossEntropyLoss with K + 1 class weights.
        loss_mask: Config of a loss of mask logits.
        loss_dice: Config of a loss of masks as a whole.
        loss_bbox: Config of a loss of boxes, centre and size.
        loss_iou: Config of a loss of boxes, corners.
        match_costs: Configs of mmdet's match costs.
        num_points: Points at which a mask is compared.
        oversample_ratio: See :func:`itpn_mm.maskdino.points.uncertain_points`.
        importance_sample_ratio: See there.
        num_boxed_classes: Only the first of the classes have losses of boxes; by default all.
        denoising_losses: Names of the losses that noisy queries have; none without denoising.
        denoising_start: Noisy queries have losses before the first layer, too.
    """

    def __init__(
        self,
        num_classes: int,
        loss_cls: dict,
        loss_mask: dict,
        loss_dice: dict,
        loss_bbox: dict,
        loss_iou: dict,
        match_costs: Sequence[dict] = MATCH_COSTS,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        num_boxed_classes: int | None = None,
        denoising_losses: Sequence[str] = (),
        denoising_start: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        self.match_costs = [TASK_UTILS.build(cost) for cost in match_costs]
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.num_boxed_classes = num_boxed_classes
        self.denoising_losses = tuple(denoising_losses)
        self.denoising_start = denoising_start

    def forward(self, outputs: Outputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses of all sets of predictions, by name; the same names every time."""
        with single_precision(outputs.mask_features.device):
            # once, as another process may have no noisy queries
            count = outputs.mask_features.new_tensor([sum(map(len, targets))], dtype=torch.float32)
            count = reduce_mean(count).clamp(min=1)
            pairs = self.match(outputs, targets)
            losses = self.compare(outputs.matching, outputs, pairs, targets, count)
            losses = self._named(outputs.names, '', losses)
            if self.denoising_losses:
                losses |= self._denoising(outputs, targets, count)
        return losses

    def _denoising(
        self, outputs: Outputs, targets: Sequence[Target], count: Tensor
    ) -> dict[str, Tensor]:
        left_out = {'enc_'} if self.denoising_start else {'enc_', 'd0.'}
        kept = [i for i, name in enumerate(outputs.names) if name not in left_out]
        if outputs.noise is None:
            zeros = outputs.mask_features.new_zeros(len(kept))
            losses = dict.fromkeys(self.denoising_losses, zeros)
        else:
            losses = self.compare(
                outputs.denoising[kept],
                outputs,
                outputs.noise.pairs.of_sets(len(kept)),
                targets,
                count * outputs.noise.num_groups,
                self.denoising_losses,
            )
        return self._named([outputs.names[i] for i in kept], 'dn_', losses)

    @staticmethod
    def _named(sets: Sequence[str], prefix: str, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            f'{name}{prefix}{loss}': values[index]
            for index, name in enumerate(sets)
            for loss, values in losses.items()
        }

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Sequence[Target]) -> Pairs:
        """Pair queries and objects one to one, at the lowest cost, in each set by itself.

        Raises:
            FloatingPointError: Predictions are not finite.
        """
        starts = first_objects(targets)
        found = []
        for image, target in enumerate(targets):
            costs = self.costs(outputs, image, target).cpu()
            if not costs.isfinite().all():
                raise FloatingPointError(
                    f'predictions of image {image} of the batch are not finite, so that no query '
                    'can be matched; lower the learning rate, or look at the images'
                )
            for index, cost in enumerate(costs):
                queries, objects = map(torch.from_numpy, linear_sum_assignment(cost))
                found.append(
                    Pairs(
                        torch.full_like(queries, image),
                        queries,
                        objects + starts[image],
                        torch.full_like(queries, index),
                    )
                )
        return Pairs.cat(found).to(outputs.mask_features.device)

    def costs(self, outputs: Outputs, image: int, target: Target) -> Tensor:
        """(S, M, n): what it costs to pair each query with each object of an image."""
        predictions = outputs.matching[:, image]
        device = outputs.mask_features.device
        if not len(target):
            return torch.zeros((*predictions.boxes.shape[:2], 0), device=device)
        points = torch.rand(1, self.num_points, 2, device=device)
        ratios = None if outputs.ratios is None else outputs.ratios[image, None]
        features = outputs.mask_features[image].float()
        features = sample_together(features, place(points, ratios)[0])
        owners = torch.arange(len(target), device=device)
        objects = InstanceData(
            labels=target.labels,
            masks=sample_masks(target.masks, owners, points.expand(len(target), -1, -1)),
            bboxes=bbox_cxcywh_to_xyxy(target.boxes),
        )
        costs = []
        for cls_logits, boxes, mask_embeds in predictions:
            queries = InstanceData(
                scores=cls_logits.float(),
                masks=mask_embeds.float() @ features,
                bboxes=bbox_cxcywh_to_xyxy(boxes.float()),
            )
            meta = dict(img_shape=(1, 1))  # boxes are fractions already
            costs.append(sum(cost(queries, objects, img_meta=meta) for cost in self.match_costs))
        return torch.stack(costs)

    def compare(
        self,
        predictions: Predictions,
        outputs: Outputs,
        pairs: Pairs,
        targets: Sequence[Target],
        count: Tensor,
        losses: Sequence[str] = LOSSES,
    ) -> dict[str, Tensor]:
        """Losses (S,) of S sets of predictions whose pairs are known.

        Args:
            predictions: The sets.
            outputs: Where mask features and ratios are.
            pairs: Of all sets.
            targets: Of the images.
            count: (1,), what losses are divided by.
            losses: Which to return.
        """
        device = outputs.mask_features.device
        labels = torch.cat([target.labels for target in targets])
        slot = (pairs.sets, pairs.images, pairs.queries)

        out = dict(loss_cls=self._class_loss(predictions.cls_logits, slot, labels, pairs, count))
        if set(losses) & set(MASK_LOSSES):
            mask, dice = self._mask_losses(predictions.mask_embeds[slot], outputs, pairs, targets)
            out |= dict(loss_mask=mask, loss_dice=dice)
        boxes = predictions.boxes[slot].float()
        box, iou = self._box_losses(boxes, torch.cat([t.boxes for t in targets])[pairs.objects])
        if self.num_boxed_classes is not None:
            boxed = labels[pairs.objects] < self.num_boxed_classes
            box, iou = box * boxed, iou * boxed
        out |= dict(loss_bbox=box, loss_iou=iou)

        empty = torch.zeros(len(predictions.boxes), device=device)
        for name in out.keys() - {'loss_cls'}:  # from pairs to sets
            out[name] = empty.index_add(0, pairs.sets, out[name]) / count
        return {name: out[name] for name in losses}

    def _class_loss(
        self,
        cls_logits: Tensor,
        slot: tuple[Tensor, ...],
        labels: Tensor,
        pairs: Pairs,
        count: Tensor,
    ) -> Tensor:
        """(S,): all queries without an object are background."""
        wanted = torch.full(
            cls_logits.shape[:-1], self.num_classes, dtype=torch.long, device=labels.device
        )
        wanted[slot] = labels[pairs.objects]
        loss = self.loss_cls(
            cls_logits.float().flatten(0, 2), wanted.flatten(), reduction_override='none'
        )
        loss = loss.view(len(cls_logits), -1).sum(1)
        if self.loss_cls.use_sigmoid:
            return loss / count
        weights = loss.new_tensor(self.loss_cls.class_weight)
        return loss / weights[wanted].flatten(1).sum(1)

    def _box_losses(self, boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) each, of boxes (P, 4)."""
        if not len(boxes):  # mmdet's losses of nothing are scalars
            return boxes.sum(1), boxes.sum(1)
        corners = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(wanted)
        return (
            self.loss_bbox(boxes, wanted, reduction_override='none').sum(1),
            self.loss_iou(*corners, reduction_override='none'),
        )

    def _mask_losses(
        self, mask_embeds: Tensor, outputs: Outputs, pairs: Pairs, targets: Sequence[Target]
    ) -> tuple[Tensor, Tensor]:
        """(P,) each, of the masks of embeddings (P, C)."""
        starts = first_objects(targets)
        orders, losses = [], []
        for image, target in enumerate(targets):
            order = (pairs.images == image).nonzero()[:, 0]
            features = outputs.mask_features[image].float()
            logits = mask_embeds[order].float() @ features.flatten(1)
            logits = logits.unflatten(1, features.shape[1:])
            ratios = None if outputs.ratios is None else outputs.ratios[image, None]
            points = uncertain_points(
                logits.detach(),
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
                ratios,
            )
            wanted = sample_masks(target.masks, pairs.objects[order] - starts[image], points)
            sampled = point_sample(logits[:, None], place(points, ratios))[:, 0]
            losses.append(self._compare_masks(sampled, wanted))
            orders.append(order)
        back = torch.cat(orders).argsort()
        mask, dice = (torch.cat(parts)[back] for parts in zip(*losses, strict=True))
        return mask, dice

    def _compare_masks(self, logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) each, of values at points (P, K)."""
        if not len(logits):
            return logits.sum(1), logits.sum(1)
        return (
            self.loss_mask(logits, wanted, reduction_override='none').mean(1),
            self.loss_dice(logits, wanted, reduction_override='none'),
        )
