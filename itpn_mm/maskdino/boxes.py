"""Tight boxes of masks."""

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

BOX_INITS = ('no', 'bitmask', 'mask2box')


def masks_to_boxes(masks: Tensor, inclusive: bool = False) -> Tensor:
    """Boxes (..., 4), corners in pixels, of masks (..., H, W); zeros for an empty mask.

    Args:
        masks: Of bool.
        inclusive: The far corner is the last pixel of the mask and not the one behind it.
    """
    corners = []
    for lines in (masks.any(-2), masks.any(-1)):  # columns, rows
        filled = lines.byte()
        first = filled.argmax(-1)
        last = lines.shape[-1] - 1 - filled.flip(-1).argmax(-1)
        corners.append((first, last if inclusive else last + 1))
    (x1, x2), (y1, y2) = corners
    boxes = torch.stack((x1, y1, x2, y2), -1)
    return boxes * masks.flatten(-2).any(-1, keepdim=True)


def boxes_from_masks(masks: Tensor, box_init: str, extent: Tensor) -> Tensor:
    """Boxes (B, Q, 4), centre and size as fractions of the image, around masks (B, Q, H, W).

    Args:
        masks: Of bool, false in padding.
        box_init: `'bitmask'`, or `'mask2box'`, whose far corner is the last pixel of the mask, so
            that a mask of one pixel has no extent. An empty mask has its box in the near corner
            with the first and in the far corner with the second, without extent.
        extent: (B, 2) or (2,), width and height of the image in pixels of the mask.
    """
    inclusive = box_init == 'mask2box'
    boxes = bbox_xyxy_to_cxcywh(masks_to_boxes(masks, inclusive).to(extent))
    boxes = boxes / extent.repeat((1,) * (extent.ndim - 1) + (2,)).unsqueeze(-2)
    if inclusive:
        empty = ~masks.flatten(-2).any(-1, keepdim=True)
        boxes = torch.where(empty, boxes.new_tensor([1, 1, 0, 0]), boxes)
    return boxes
