"""itpn_mm.recipes: what the functions of a user's config return, whatever the detector."""

import copy

import pytest
import torch
from mmengine.config import Config
from torch import nn

from itpn_mm.acceleration import SETTINGS
from itpn_mm.engine import check_config, check_model_fits
from itpn_mm.recipes import TRUNKS, layer_wise_adamw, swap_in
from itpn_mm.registry import MODELS

from .test_configs import read

# As little of a detector as tells its strides.
MODEL = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[1.0], bgr_to_rgb=False),
    backbone=dict(type='ResNet', depth=50),
    neck=dict(type='FPN', num_outs=2),
    bbox_head=dict(in_channels=128, anchor_generator=dict(strides=[8, (16, 16)])),
)
CONFIG = """_base_ = './base.py'

from itpn_mm.recipes import layer_wise_adamw, swap_in

model = swap_in(_base_.model, 'hivit-small', checkpoint='no/such.pth', accelerate='all')
optim_wrapper = layer_wise_adamw('hivit-small', clip_grad=dict(max_norm=0.1))
"""


def test_what_it_returns():
    given = copy.deepcopy(MODEL)
    parts = swap_in(given, 'fastitpn-base', drop_path_rate=0.1)
    assert given == MODEL
    assert parts == dict(
        backbone=dict(
            _delete_=True, type='itpn_mm.FastiTPN', arch='base', img_size=224, drop_path_rate=0.1
        ),
        neck=dict(
            _delete_=True,
            type='itpn_mm.TransformerPyramidNeck',
            in_channels=(128, 256, 512),
            out_channels=256,
            out_strides=(8, 16),
            depth=1,
            bias=True,
        ),
        data_preprocessor=dict(
            mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
        ),
        bbox_head=dict(in_channels=256),
    )


@pytest.mark.parametrize('trunk', TRUNKS)
def test_parts_of_every_trunk_are_built_and_fit(trunk):
    parts = swap_in(MODEL, trunk, strides=(4, 8, 16, 32, 64))
    model = nn.Module()
    with torch.device('meta'):
        for name in ('backbone', 'neck'):
            assert parts[name].pop('_delete_') is True
            setattr(model, name, MODELS.build(parts[name]))
    check_model_fits(model)
    assert tuple(model.neck.out_strides) == (4, 8, 16, 32, 64)
    family, size = trunk.split('-')
    assert type(model.backbone).__name__.lower() == family
    assert model.backbone.embed_dims == dict(tiny=384, small=384, base=512, large=768)[size]


@pytest.mark.parametrize(
    ('trunk', 'name'),
    [
        ('hivit-base', 'itpn-pixel_hivit-base-p16_8xb512-amp-coslr-1600e_in1k'),
        ('fastitpn-base', 'itpn-clip-l_fastitpn-base-p16_8xb256-amp-coslr-1600e_in1k'),
    ],
)
def test_parts_are_those_of_the_pretraining(trunk, name):
    pretraining, parts = read(name).model, swap_in({}, trunk, strides=(4, 8, 16))
    for part in ('backbone', 'neck'):
        expected = pretraining[part].to_dict()
        expected.pop('drop_path_rate', None)
        assert parts[part] == expected


def test_checkpoint_is_for_both_parts():
    parts = swap_in(MODEL, checkpoint='FILE')
    for part in ('backbone', 'neck'):
        expected = dict(type='Pretrained', checkpoint='FILE', prefix=f'{part}.')
        assert parts[part]['init_cfg'] == expected


def test_accelerated_backbone_is_wrapped():
    dense = swap_in(MODEL, checkpoint='FILE')['backbone']
    for name, settings in SETTINGS.items():
        backbone = swap_in(MODEL, checkpoint='FILE', accelerate=name)['backbone']
        assert backbone.pop('_delete_') is True
        assert backbone.pop('type') == 'itpn_mm.TokenMigration'
        assert {**backbone.pop('backbone'), '_delete_': True} == dense
        assert backbone == settings


@pytest.mark.parametrize(
    ('heads', 'strides'),
    [
        (dict(rpn_head=dict(anchor_generator=dict(strides=[4, 8]))), (4, 8)),
        (dict(bbox_head=dict(prior_generator=dict(strides=[(8, 8)]))), (8,)),
        (dict(bbox_head=dict(strides=(8, 16))), (8, 16)),
        (dict(bbox_head_init=dict(anchor_generator=dict(strides=[16, 32]))), (16, 32)),
        (dict(panoptic_head=dict(strides=[4, 8, 16, 32])), (4, 8, 16, 32)),
        (dict(encoder={}, neck=dict(num_outs=4)), (8, 16, 32, 64)),
        (dict(encoder={}, neck=dict(num_outs=5)), (4, 8, 16, 32, 64)),
    ],
)
def test_strides_are_read_off_the_heads(heads, strides):
    assert swap_in(heads)['neck']['out_strides'] == strides


@pytest.mark.parametrize(
    'heads', [{}, dict(bbox_head={}), dict(encoder={}, neck=dict(num_outs=3)), dict(neck=None)]
)
def test_strides_that_no_head_tells_have_to_be_given(heads):
    with pytest.raises(ValueError, match=r'`strides` must be given: .*XNet.*strides=\(8, 16, 32\)'):
        swap_in(dict(type='XNet', **heads))
    assert swap_in(heads, strides=[8, 16])['neck']['out_strides'] == (8, 16)


def test_only_what_is_there_is_replaced():
    """mmengine hands `_delete_` on, as an argument, where there is nothing to delete."""
    model = dict(
        backbone={}, panoptic_head=dict(in_channels=[256, 512, 1024, 2048], strides=[4, 8, 16, 32])
    )
    parts = swap_in(model)
    assert parts.keys() == {'backbone', 'neck', 'panoptic_head'}
    assert '_delete_' in parts['backbone'] and '_delete_' not in parts['neck']
    assert parts['panoptic_head'] == dict(in_channels=[256, 256, 256, 256])


def test_maps_of_an_encoder_cover_as_much_as_the_image():
    dino = dict(encoder={}, neck=dict(num_outs=5), data_preprocessor=dict(pad_size_divisor=1))
    assert swap_in(dino)['data_preprocessor']['pad_size_divisor'] == 64
    retinanet = dict(bbox_head=dict(strides=[8, 16]), data_preprocessor=dict(pad_size_divisor=32))
    assert 'pad_size_divisor' not in swap_in(retinanet)['data_preprocessor']


def test_heads_follow_another_width():
    parts = swap_in(MODEL, neck=dict(out_channels=128, depth=3))
    assert parts['neck']['depth'] == 3 and parts['neck']['bias'] is True
    assert 'bbox_head' not in parts  # it has 128 already
    assert swap_in(MODEL, neck=dict(out_channels=64))['bbox_head'] == dict(in_channels=64)


@pytest.mark.parametrize('trunk', ['fastitpn', 'hivit-huge', 'swin-base', 'fastitpn-base-x'])
def test_unknown_trunks_are_named(trunk):
    for function in (lambda: swap_in(MODEL, trunk), lambda: layer_wise_adamw(trunk)):
        with pytest.raises(
            ValueError, match=f"`trunk` must be one of .*, but got '{trunk}'"
        ) as info:
            function()
        assert '\n' not in str(info.value)


def test_unknown_acceleration_is_named():
    with pytest.raises(ValueError, match=r"`accelerate` must be one of .*'all'.*but got 'fast'"):
        swap_in(MODEL, accelerate='fast')


def test_rates_of_layer_decay():
    rates = {}
    for trunk in TRUNKS:
        wrapper = layer_wise_adamw(trunk)
        rates[trunk.split('-')[1]] = wrapper['paramwise_cfg']['layer_decay_rate']
    assert rates == dict(tiny=0.8, small=0.85, base=0.9, large=0.95)


def test_optimizer_is_that_of_the_configs():
    cfg = read('rotated-faster-rcnn-le90_fastitpn-base-itpn-clip-l_tpn_8xb1-1x_dota')
    expected = cfg.optim_wrapper.to_dict()
    del expected['_scope_']  # where mmengine noted the package of the base
    wrapper = layer_wise_adamw('fastitpn-base', clip_grad=expected['clip_grad'])
    assert wrapper.pop('_delete_') is True
    assert wrapper == expected
    assert layer_wise_adamw(lr=2e-4, type='AmpOptimWrapper')['type'] == 'AmpOptimWrapper'
    assert layer_wise_adamw(lr=2e-4)['optimizer']['lr'] == 2e-4


@pytest.fixture
def config(tmp_path):
    """A config of a user on top of a base, which is `MODEL`."""
    (tmp_path / 'base.py').write_text(f'model = {MODEL}\noptim_wrapper = dict(type="A", b=1)\n')
    path = tmp_path / 'mine.py'
    path.write_text(CONFIG)
    return path


def test_config_dumps_and_is_read_again(config, tmp_path):
    cfg = Config.fromfile(config)
    assert set(cfg) == {'model', 'optim_wrapper'}  # the functions are not part of it
    assert cfg.optim_wrapper.keys() == layer_wise_adamw(clip_grad={}).keys() - {'_delete_'}
    assert cfg.model.backbone.keys() == {'type', 'backbone', *SETTINGS['all']}
    assert cfg.model.bbox_head.anchor_generator == MODEL['bbox_head']['anchor_generator']
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


def test_missing_checkpoint_is_named(config):
    message = r"`model\.backbone\.backbone\.init_cfg\.checkpoint` is 'no/such\.pth'"
    with pytest.raises(FileNotFoundError, match=message):
        check_config(Config.fromfile(config), 'train')
