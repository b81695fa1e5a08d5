"""Tiny heads with random weights, and maps and objects for them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from itpn_mm.maskdino import MaskDINOBase
from itpn_mm.maskdino.targets import Target

from .golden import cross_entropy

NUM_CLASSES, IN_CHANNELS = 3, (6, 7, 8, 9)
FIELDS = ('cls_logits', 'boxes', 'mask_embeds')  # of predictions


def head_options(**options: object) -> dict:
    """Arguments of a tiny head; `loss_cls='ce'` for a cross-entropy."""
    if options.get('loss_cls') == 'ce':
        options['loss_cls'] = cross_entropy(options.get('num_classes', NUM_CLASSES))
    levels = options.pop('pixel_decoder', {})
    defaults = dict(
        in_channels=IN_CHANNELS,
        num_queries=5,
        feat_channels=64,
        out_channels=16,
        pixel_decoder=dict(num_layers=1, feedforward_channels=16) | levels,
        transformer_decoder=dict(num_layers=2, feedforward_channels=16),
        denoising=dict(num_queries=6),
        train_cfg=dict(num_points=64),
    )
    return defaults | options


def tiny_head(**options: object) -> MaskDINOBase:
    return randomise(MaskDINOBase(**dict(num_classes=NUM_CLASSES) | head_options(**options)))


def randomise(head: nn.Module) -> nn.Module:
    """Weights that let everything depend on everything."""
    for module in head.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and name == 'weight'
            nn.init.normal_(parameter, 1.0 if is_norm else 0.0, 0.15)
    return head


def make_maps(batch: int, size: tuple[int, int], channels: Sequence[int] = IN_CHANNELS) -> list:
    """Maps of strides 4, 8 and so on of images whose size is a multiple of the coarsest."""
    return [
        torch.randn(batch, count, size[0] >> level + 2, size[1] >> level + 2)
        for level, count in enumerate(channels)
    ]


def make_target(count: int, size: tuple[int, int], num_classes: int = NUM_CLASSES) -> Target:
    """Rectangles."""
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(side - 8, ())) for side in size)
        height, width = (int(side) for side in torch.randint(12, 30, (2,)))
        mask[top : top + height, left : left + width] = True
    target = Target.from_masks(torch.randint(num_classes, (count,)), masks)
    return Target(target.labels, target.boxes.to(torch.get_default_dtype()), target.masks)


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values())


@contextmanager
def double_precision() -> Iterator[None]:
    """Everything in double precision, also what asks for single; heads still need `.double()`."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(Tensor, 'float', Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
