"""Queries made of objects with noise, which learn to find them (MaskDINO, Section 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor, nn

from itpn_mm.layers.arguments import check_counts, check_flags, is_number

from .decoder import EPS
from .pairs import Pairs
from .targets import Target, first_objects


@dataclass(frozen=True)
class NoisyQueries:
    """Denoising queries of a batch; they come before the M matching queries.

    Args:
        content: (B, D, C); object j of an image is in slot g * (slots of a group) + j of group g.
        box_logits: (B, D, 4), boxes before the sigmoid.
        blocked: (D + M, D + M), true where the query of a row must not see that of a column.
        pairs: Which query is which object.
        num_groups: Copies of each object.
    """

    content: Tensor
    box_logits: Tensor
    blocked: Tensor
    pairs: Pairs
    num_groups: int


class QueryDenoiser(nn.Module):
    """Makes noisy queries of the objects of a batch.

    Args:
        num_classes: Classes K.
        embed_dims: Channels C of queries.
        num_queries: Queries at most, for the image with most objects; an image with more objects
            than that has none, nor has any of its batch.
        noise_scale: A class is drawn anew with half of this probability; a side of a box changes by
            at most this part of it, its centre by at most half of this part.
        masks: Whether the losses of masks apply to noisy queries, too (`dn='seg'` of the authors,
            otherwise `'standard'`).
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_queries: int = 100,
        noise_scale: float = 0.4,
        masks: bool = True,
    ) -> None:
        super().__init__()
        check_counts(num_queries=num_queries)
        check_flags(masks=masks)
        if not is_number(noise_scale) or not 0 <= noise_scale <= 2:  # twice a probability
            raise ValueError(f'`noise_scale` must be between 0 and 2, got {noise_scale!r}')
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.noise_scale = noise_scale
        self.masks = masks
        self.label_embed = nn.Embedding(num_classes, embed_dims)

    def forward(self, targets: Sequence[Target], num_matching: int) -> NoisyQueries | None:
        """Return the queries; `None` where there are no objects or too many."""
        slots = max(map(len, targets))
        groups = self.num_queries // slots if slots else 0
        if not groups:
            return None
        labels = torch.cat([target.labels for target in targets]).repeat(groups)
        boxes = torch.cat([target.boxes for target in targets]).repeat(groups, 1)
        labels, boxes = self.add_noise(
            labels,
            boxes,
            redrawn=torch.rand(len(labels), device=labels.device) < self.noise_scale / 2,
            new_labels=torch.randint_like(labels, self.num_classes),
            shift=2 * torch.rand_like(boxes) - 1,
        )
        pairs = self._pairs(targets, groups, slots)
        shape = (len(targets), groups * slots)
        embedded = self.label_embed(labels)
        content = embedded.new_zeros((*shape, embedded.shape[-1]))
        box_logits = boxes.new_zeros((*shape, 4))
        slot = (pairs.images, pairs.queries)
        return NoisyQueries(
            content.index_put(slot, embedded),
            box_logits.index_put(slot, inverse_sigmoid(boxes, EPS)),
            self.blocked(groups, slots, num_matching).to(labels.device),
            pairs,
            groups,
        )

    def add_noise(
        self, labels: Tensor, boxes: Tensor, redrawn: Tensor, new_labels: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change labels (n,) and boxes (n, 4) by given draws.

        Args:
            labels: Of classes.
            boxes: Centre and size as fractions of the image.
            redrawn: (n,), which labels to replace.
            new_labels: (n,), what by.
            shift: (n, 4), between -1 and 1, in units of the largest allowed change.
        """
        size = boxes[:, 2:]
        unit = torch.cat((size / 2, size), 1) * self.noise_scale
        return torch.where(redrawn, new_labels, labels), (boxes + shift * unit).clamp(0, 1)

    @staticmethod
    def _pairs(targets: Sequence[Target], groups: int, slots: int) -> Pairs:
        """One group after the other, and in it one image after the other."""
        device = targets[0].labels.device
        counts = torch.tensor([len(target) for target in targets], device=device)
        total = int(counts.sum())
        images = torch.arange(len(targets), device=device).repeat_interleave(counts)
        objects = torch.arange(total, device=device)
        starts = torch.tensor(first_objects(targets), device=device)
        slot = objects - starts[images]
        group = torch.arange(groups, device=device).repeat_interleave(total)
        return Pairs(
            images.repeat(groups), group * slots + slot.repeat(groups), objects.repeat(groups)
        )

    @staticmethod
    def blocked(groups: int, slots: int, num_matching: int) -> Tensor:
        """Who must not see whom: nobody sees another group, and matching queries see no group."""
        noisy = groups * slots
        total = noisy + num_matching
        group = torch.arange(total) // slots
        group[noisy:] = groups
        return (group[:, None] != group[None, :]) & (group[None, :] < groups)
