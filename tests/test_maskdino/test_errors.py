"""Wrong arguments are named, with their value, and what would be right."""

import re

import pytest
import torch
from torch import nn

from itpn_mm.detection.maskdino import MaskDINOFusionHead
from itpn_mm.maskdino.padding import find_ratios

from .golden import cross_entropy
from .heads import make_maps, make_target, tiny_head

SIZE = (64, 96)
ARGUMENTS = [
    (dict(denoising=dict(noise_scale=2.5)), '`noise_scale` must be between 0 and 2, got 2.5'),
    (dict(denoising=dict(noise_scale=-0.1)), '`noise_scale` must be between 0 and 2, got -0.1'),
    (
        dict(pixel_decoder=dict(num_levels=6, num_extra_levels=1)),
        '`num_levels` is 6 and `num_extra_levels` 1, which takes 5 maps, but `in_channels` names 4',
    ),
    (
        dict(pixel_decoder=dict(num_levels=2, num_extra_levels=2)),
        '`num_levels` is 2 and `num_extra_levels` 2, which takes 0 maps',
    ),
    (dict(pixel_decoder=dict(num_extra_levels=-1)), '`num_extra_levels` -1'),
    (dict(feat_channels=48), '`feat_channels` must be a multiple of 32, got 48'),
    (
        dict(loss_cls=cross_entropy(2)),
        '`loss_cls.class_weight` must have 4 numbers, one for each class and one for "no object", '
        'got [1.0, 1.0, 0.1]',
    ),
    (
        dict(loss_cls=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False)),
        '`loss_cls.class_weight` must have 4 numbers, one for each class and one for "no object", '
        'got None',
    ),
    (dict(box_init='mask'), "`box_init` must be one of ('no', 'bitmask', 'mask2box'), got 'mask'"),
    (dict(two_stage=False, box_init='bitmask'), 'which needs `two_stage=True`'),
    (dict(two_stage=False, learned_content=True), 'which needs `two_stage=True`'),
    (dict(two_stage=False, proposal_sizes=(0.1, 0.2, 0.4)), 'which needs `two_stage=True`'),
    (dict(proposal_sizes=(0.1, 0.2)), '`proposal_sizes` has 2 numbers, but there are 3 levels'),
]


@pytest.mark.parametrize(('options', 'message'), ARGUMENTS)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        tiny_head(**options)
    assert '\n' not in str(error.value)


def test_maps_of_other_channels():
    maps = make_maps(1, SIZE, channels=(6, 7, 8, 10))
    wanted = '`in_channels` is (6, 7, 8, 9), but the maps have (6, 7, 8, 10) channels'
    with pytest.raises(ValueError, match=re.escape(wanted)):
        tiny_head().segment(maps)
    with pytest.raises(ValueError, match=re.escape('but the maps have (6, 7, 8) channels')):
        tiny_head().segment(make_maps(1, SIZE)[:3])


def test_fewer_tokens_than_queries():
    wanted = '`num_queries` is 60, but ((4, 8), (2, 4), (1, 2)) are only 42 tokens; use fewer'
    with pytest.raises(ValueError, match=re.escape(wanted)):
        tiny_head(num_queries=60).segment(make_maps(1, (32, 64)))
    tiny_head(num_queries=42).eval().segment(make_maps(1, (32, 64)))


@pytest.mark.parametrize('size', [(65, 96), (64, 97)])
def test_image_larger_than_the_batch(size):
    wanted = f'`img_shape` is {size}, larger than the batch, (64, 96); height comes first'
    with pytest.raises(ValueError, match=re.escape(wanted)):
        find_ratios([(64, 96), size], (64, 96), torch.device('cpu'))


def test_unknown_test_cfg():
    with pytest.raises(ValueError, match=r"`test_cfg` has \['filter_low_score'\], which MaskDINO"):
        MaskDINOFusionHead(2, 0, test_cfg=dict(filter_low_score=True, panoptic_on=False))


def test_predictions_that_are_not_finite():
    head = tiny_head(two_stage=False)
    nn.init.constant_(head.predictor.mask_head.layers[-1].bias, float('nan'))
    targets = [make_target(0, SIZE), make_target(2, SIZE)]
    with pytest.raises(FloatingPointError, match='predictions of image 1 of the batch are not fin'):
        head.losses(make_maps(2, SIZE), [SIZE] * 2, SIZE, targets)
