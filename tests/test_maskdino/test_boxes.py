"""Boxes around masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.layers import inverse_sigmoid

from itpn_mm.maskdino.boxes import boxes_from_masks, masks_to_boxes
from itpn_mm.maskdino.decoder import EPS

HEIGHT, WIDTH = 9, 16
EXTENT = torch.tensor([WIDTH, HEIGHT]).float()


@given(
    st.tuples(st.integers(0, WIDTH - 1), st.integers(1, WIDTH)),
    st.tuples(st.integers(0, HEIGHT - 1), st.integers(1, HEIGHT)),
)
@settings(max_examples=60, deadline=None)
def test_a_rectangle_is_its_own_box(columns, rows):
    (x1, width), (y1, height) = columns, rows
    x2, y2 = min(x1 + width, WIDTH), min(y1 + height, HEIGHT)
    masks = torch.zeros(1, 2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 1, y1:y2, x1:x2] = True
    assert masks_to_boxes(masks)[0, 1].tolist() == [x1, y1, x2, y2]
    assert masks_to_boxes(masks, inclusive=True)[0, 1].tolist() == [x1, y1, x2 - 1, y2 - 1]
    for box_init, behind in (('bitmask', 0), ('mask2box', 1)):
        box = boxes_from_masks(masks, box_init, EXTENT[None])[0, 1]
        wanted = (x1 + x2 - behind) / 2, (y1 + y2 - behind) / 2, x2 - x1 - behind, y2 - y1 - behind
        np.testing.assert_allclose(box, np.divide(wanted, (WIDTH, HEIGHT) * 2), rtol=1e-6)


@given(st.integers(0, 2**20 - 1))
@settings(max_examples=60, deadline=None)
def test_box_of_any_mask(bits):
    """No pixel lies outside of the box, and every side of it touches one."""
    mask = torch.tensor([bits >> i & 1 for i in range(20)]).view(4, 5).bool()
    x1, y1, x2, y2 = masks_to_boxes(mask[None])[0].tolist()
    pixels = mask.nonzero()
    if not bits:
        assert (x1, y1, x2, y2) == (0, 0, 0, 0)
    else:
        (top, left), (bottom, right) = pixels.amin(0).tolist(), pixels.amax(0).tolist()
        assert (x1, y1, x2, y2) == (left, top, right + 1, bottom + 1)


@pytest.mark.parametrize('box_init', ['bitmask', 'mask2box'])
def test_empty_mask_and_one_pixel_give_finite_queries(box_init):
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[1, 3, 4] = True
    boxes = boxes_from_masks(masks, box_init, EXTENT)
    logits = inverse_sigmoid(boxes, EPS)
    assert logits.isfinite().all()
    side = 1 if box_init == 'bitmask' else 0
    assert boxes[0].tolist() == ([0] * 4 if side else [1, 1, 0, 0])
    wanted = torch.tensor([4 + side / 2, 3 + side / 2, side, side]) / EXTENT.repeat(2)
    torch.testing.assert_close(boxes[1], wanted)


def test_extent_is_of_each_image():
    masks = torch.zeros(2, 1, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, :, 2:4, 4:8] = True
    extent = torch.tensor([[16, 8], [8, 4]]).float()
    boxes = boxes_from_masks(masks, 'bitmask', extent)[:, 0]
    assert boxes[0].tolist() == [6 / 16, 3 / 8, 4 / 16, 2 / 8]
    assert boxes[1].tolist() == [6 / 8, 3 / 4, 4 / 8, 2 / 4]
