"""Single functions against the authors'."""

from functools import cache

import pytest
import torch
from mmdet.models.layers import inverse_sigmoid
from mmdet.models.losses import GIoULoss

from itpn_mm.maskdino.boxes import boxes_from_masks, masks_to_boxes
from itpn_mm.maskdino.decoder import EPS, MaskDINODecoder
from itpn_mm.maskdino.pixel_decoder import MaskDINOPixelDecoder
from itpn_mm.maskdino.predictor import MaskDINOPredictor
from itpn_mm.maskdino.tokens import LevelTokens

from .golden import assert_close, load, take

pytestmark = pytest.mark.checklist('parity')

FIXTURES = ['ops']


@cache
def ops() -> tuple[dict, dict[str, torch.Tensor]]:
    return load(*FIXTURES)


def test_golden_inverse_sigmoid():
    entry, tensors = ops()
    found = inverse_sigmoid(tensors['inverse_sigmoid.in'], EPS)
    assert_close(found, tensors['inverse_sigmoid.out'], entry)


@pytest.mark.parametrize('num_feats', [16, 128])
def test_golden_codes_of_boxes(num_feats):
    entry, tensors = ops()
    decoder = MaskDINODecoder(embed_dims=2 * num_feats, num_layers=0)
    found = decoder.encode(tensors[f'box_sine.{num_feats}.in'])
    assert_close(found, tensors[f'box_sine.{num_feats}.out'], entry)


@pytest.mark.parametrize('num_feats', [16, 128])
def test_golden_codes_of_places(num_feats):
    entry, tensors = ops()
    wanted = tensors[f'pos_sine.{num_feats}']
    decoder = MaskDINOPixelDecoder([32], num_levels=1, feat_channels=2 * num_feats, num_layers=0)
    torch.nn.init.zeros_(decoder.level_embed)
    found = decoder.positions(LevelTokens.from_maps([torch.zeros_like(wanted)]))
    assert_close(found, wanted.flatten(2).mT, entry)


def test_golden_proposals():
    entry, tensors = ops()
    sizes = tuple(map(tuple, tensors['proposals.spatial_shapes'].int().tolist()))
    predictor = MaskDINOPredictor(
        3, two_stage=True, embed_dims=32, decoder=dict(num_levels=2, num_layers=0)
    )
    tokens = tensors['proposals.memory']
    logits, valid = predictor.proposals(LevelTokens(tokens, sizes))
    wanted = tensors['proposals.out_logit_boxes_sigmoid']
    assert not valid.all()
    assert_close(logits.sigmoid().expand_as(wanted), wanted, entry)
    assert_close(tokens * valid[..., None], tensors['proposals.out_memory'], entry)


@pytest.mark.parametrize('box_init', ['bitmask', 'mask2box'])
def test_golden_boxes_of_masks(box_init):
    entry, tensors = ops()
    masks = tensors['masks'] > 0
    filled = masks.flatten(1).any(1)
    assert not filled.all()
    corners = masks_to_boxes(masks, inclusive=box_init == 'mask2box').float()
    assert_close(corners[filled], tensors[f'masks_to_boxes_{box_init}'][filled], entry)
    height, width = masks.shape[1:]
    boxes = boxes_from_masks(masks, box_init, torch.tensor([width, height]).float())
    found = inverse_sigmoid(boxes, EPS).sigmoid()
    assert_close(found, tensors[f'box_init_sigmoid.{box_init}'], entry)


def test_golden_giou():
    """The stock loss has no epsilon in its union: differs by 1e-6 over the smallest area."""
    entry, tensors = ops()
    first, second = tensors['giou.a'], tensors['giou.b']
    pairs = [boxes.flatten(0, 1) for boxes in torch.broadcast_tensors(first[:, None], second)]
    loss = GIoULoss(reduction='none')(*pairs).view(len(first), len(second))
    large = slice(0, 1)  # of the second boxes, one has an area of 2e-5 and one has none
    assert_close(1 - loss[:, large], tensors['giou.out'][:, large], entry)
    torch.testing.assert_close(1 - loss, tensors['giou.out'], rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize('numbers', [2, 4])
def test_golden_deformable_attention(numbers):
    entry, tensors = ops()
    attention = MaskDINODecoder(embed_dims=32, num_layers=1).layers[0].cross_attn
    attention.load_state_dict(take(tensors, 'msda.state.'))
    sizes = tuple(map(tuple, tensors['msda.spatial_shapes'].int().tolist()))
    inputs = LevelTokens(tensors['msda.value'], sizes).attention_inputs()
    query = tensors['msda.query']
    with torch.no_grad():
        found = attention(
            query,
            value=tensors['msda.value'],
            identity=torch.zeros_like(query),
            reference_points=tensors[f'msda.ref{numbers}'],
            **inputs,
        )
    assert_close(found, tensors[f'msda.out_ref{numbers}'], entry)
