import re

import pytest
import torch

from itpn_mm.checkpoint.architecture import inspect
from itpn_mm.checkpoint.mismatch import explain_mismatch

from .models import backbone, fast_backbone, neck, state_of


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        ({}, dict(rel_pos_bias=None, rel_pos_shape=None, num_heads=None, layer_scale=False)),
        (dict(rel_pos_bias='block'), dict(rel_pos_shape=(49, 2), num_heads=2)),
        (dict(rel_pos_bias='shared'), dict(rel_pos_shape=(49, 2), num_heads=2)),
        (dict(rel_pos_bias='decomposed'), dict(rel_pos_shape=(7, 16), num_heads=2)),
        (dict(layer_scale_init_value=1.0), dict(layer_scale=True)),
        (dict(stem_mlp_ratio=2.0, mlp_ratio=1.5), dict(stem_mlp_ratio=2.0, mlp_ratio=1.5)),
        (dict(in_channels=5, patch_size=8), dict(in_channels=5, patch_size=8, grid=(8, 8))),
        (dict(patch_norm=False, qkv_bias=False), dict(patch_norm=False, qkv_bias=False)),
        (dict(use_abs_pos_emb=False), dict(use_abs_pos_emb=False, grid=None)),
        (dict(img_size=(64, 96)), dict(grid=None)),
        ({}, dict(type='HiViT', sub_norm=False, swiglu=False, cls_token=False)),
    ],
)
def test_inspect_backbone(kwargs, expected):
    found = inspect(state_of(backbone=backbone(**kwargs)))
    assert found['neck'] is None
    found = found['backbone']
    assert (found['embed_dims'], found['depths']) == (32, (1, 1, 2))
    given = {key: kwargs[key] for key in kwargs.keys() & found.keys()}
    assert {**given, **expected}.items() <= found.items()


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        ({}, dict(type='FastiTPN', cls_token=False, layer_scale=True, patch_norm=False)),
        (dict(sub_norm=False, swiglu=False), dict(mlp_ratio=3.0, stem_mlp_ratio=3.0)),
        (dict(mlp_ratio=2.0, layer_scale_init_value=None), dict(mlp_ratio=2.0, layer_scale=False)),
        (dict(cls_token=True), dict(grid=(4, 4), rel_pos_shape=None)),
        (dict(cls_token=True, rel_pos_bias='block'), dict(rel_pos_shape=(52, 2), num_heads=2)),
        (dict(cls_token=True, rel_pos_bias='shared'), dict(grid=(4, 4), num_heads=2)),
        (dict(cls_token=True, rel_pos_bias='decoupled'), dict(rel_pos_shape=(10, 2), grid=(4, 4))),
        (dict(rel_pos_bias='decoupled', use_abs_pos_emb=False), dict(grid=(4, 4), num_heads=2)),
        (dict(qkv_bias=False), {}),
    ],
)
def test_inspect_fast_backbone(kwargs, expected):
    found = inspect(state_of(backbone=fast_backbone(**kwargs)))['backbone']
    assert (found['embed_dims'], found['depths'], found['grid']) == (32, (1, 1, 2), (4, 4))
    given = dict(sub_norm=True, swiglu=True, qkv_bias=True) | kwargs
    given = {key: given[key] for key in given.keys() & found.keys()}
    assert {**given, **expected}.items() <= found.items()


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        ({}, dict(depth={4: 2, 8: 2}, levels=(4, 8, 16), bias=False)),
        (dict(depth=(3, 0)), dict(depth={4: 3, 8: 0})),
        (dict(bias=True, mlp_ratio=2.0), dict(bias=True, mlp_ratio=2.0)),
        (dict(out_channels=32), dict(out_channels=32, in_channels={4: 8, 8: 16, 16: 32})),
        (
            dict(out_strides=(8, 16)),
            dict(levels=(8, 16), in_channels={8: 16, 16: 32}, depth={8: 2}),
        ),
        (dict(out_strides=(16, 32)), dict(levels=(16,), depth={}, bias=None, in_channels={16: 32})),
        (dict(out_strides=(4,)), dict(levels=(4,), in_channels={4: 8, 8: 16, 16: 32})),
    ],
)
def test_inspect_neck(kwargs, expected):
    found = inspect(state_of(neck=neck(**kwargs)))
    assert found['backbone'] is None
    assert expected.items() <= found['neck'].items()


def test_inspect_something_else():
    assert inspect(
        {'backbone.conv1.weight': torch.zeros(1), 'neck.norm.weight': torch.zeros(1)}
    ) == {
        'backbone': None,
        'neck': None,
    }


ARCH_TEXT = 'set backbone.arch to one with '


@pytest.mark.parametrize(
    'found, built, message',
    [
        (
            dict(arch=dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)),
            {},
            f'has embed_dims=64 but HiViT was built with embed_dims=32: {ARCH_TEXT}embed_dims=64',
        ),
        (
            dict(arch=dict(embed_dims=32, depths=(1, 2, 5), num_heads=2)),
            {},
            'has depths=(1, 2, 5) but HiViT was built with depths=(1, 1, 2): '
            f'{ARCH_TEXT}depths=(1, 2, 5)',
        ),
        (
            dict(
                arch=dict(embed_dims=32, depths=(1, 1, 2), num_heads=4), rel_pos_bias='decomposed'
            ),
            dict(rel_pos_bias='block'),
            f'has num_heads=4 but HiViT was built with num_heads=2: {ARCH_TEXT}num_heads=4',
        ),
        (
            dict(layer_scale_init_value=0.5),
            {},
            'has layer_scale=True but HiViT was built with layer_scale=False: '
            'set backbone.layer_scale_init_value=0.1',
        ),
        (
            {},
            dict(layer_scale_init_value=0.5),
            'has layer_scale=False but HiViT was built with layer_scale=True: '
            'set backbone.layer_scale_init_value=None',
        ),
        (
            dict(mlp_ratio=3.0, qkv_bias=False),
            {},
            'has mlp_ratio=3.0, qkv_bias=False but HiViT was built with mlp_ratio=4.0, '
            'qkv_bias=True: set backbone.mlp_ratio=3.0, set backbone.qkv_bias=False',
        ),
        (
            dict(patch_norm=False),
            {},
            'has patch_norm=False but HiViT was built with patch_norm=True: '
            'set backbone.patch_norm=False',
        ),
        (
            {},
            dict(use_abs_pos_emb=False),
            'has use_abs_pos_emb=True but HiViT was built with use_abs_pos_emb=False: '
            'set backbone.use_abs_pos_emb=True',
        ),
        (dict(img_size=96), dict(rel_pos_bias='block'), None),
    ],
)
def test_explain_backbone(found, built, message):
    states = backbone(**found).state_dict(), backbone(**built).state_dict()
    assert explain_mismatch('backbone', *states, 'HiViT') == message


@pytest.mark.parametrize(
    'found, built, message',
    [
        (
            backbone,
            fast_backbone,
            "is of a HiViT but the model has a X: set backbone.type='itpn_mm.HiViT'",
        ),
        (fast_backbone, backbone, "set backbone.type='itpn_mm.FastiTPN'"),
        (dict(sub_norm=False), {}, 'has sub_norm=False but .* set backbone.sub_norm=False'),
        ({}, dict(swiglu=False), 'set backbone.swiglu=True'),
        (dict(cls_token=True), {}, 'has cls_token=True but .* set backbone.cls_token=True'),
        ({}, dict(cls_token=True), 'set backbone.cls_token=False'),
    ],
)
def test_explain_fast_backbone(found, built, message):
    states = [
        (fast_backbone(**given) if isinstance(given, dict) else given()).state_dict()
        for given in (found, built)
    ]
    assert re.search(message, explain_mismatch('backbone', *states, 'X'))


def test_a_position_of_a_class_token_tells_too():
    state = fast_backbone(cls_token=True).state_dict()
    state.pop('cls_token')
    message = explain_mismatch('backbone', state, fast_backbone().state_dict(), 'FastiTPN')
    assert message.endswith('set backbone.cls_token=True')


NECK = 'TransformerPyramidNeck'


@pytest.mark.parametrize(
    'found, built, message',
    [
        (
            dict(out_channels=512),
            dict(out_channels=256),
            f'has out_channels=512 but {NECK} was built with out_channels=256: '
            'set neck.out_channels=512',
        ),
        (
            dict(depth=2),
            dict(depth=1),
            f'has depth=2 but {NECK} was built with depth=1: set neck.depth=2',
        ),
        (
            dict(depth=(1, 2)),
            {},
            f'has depth=(1, 2) but {NECK} was built with depth=2: set neck.depth=(1, 2)',
        ),
        (
            dict(in_channels=(8, 24, 32)),
            {},
            f'has in_channels=(8, 24, 32) but {NECK} was built with in_channels=(8, 16, 32): '
            'set neck.in_channels=(8, 24, 32)',
        ),
        (
            dict(bias=True),
            {},
            f'has bias=True but {NECK} was built with bias=False: set neck.bias=True',
        ),
        (dict(depth=(1, 2)), dict(out_strides=(8, 16)), None),  # what is not built may differ
        (dict(depth=1), dict(out_strides=(16,)), None),
    ],
)
def test_explain_neck(found, built, message):
    states = neck(**found).state_dict(), neck(**built).state_dict()
    assert explain_mismatch('neck', *states, NECK) == message


def test_weights_that_are_not_there_are_not_compared():
    state = {k: v for k, v in backbone(mlp_ratio=2.0).state_dict().items() if 'mlp' not in k}
    assert inspect({f'backbone.{k}': v for k, v in state.items()})['backbone']['mlp_ratio'] is None
    assert explain_mismatch('backbone', state, backbone().state_dict(), 'HiViT') is None


def test_nothing_to_explain():
    state = {'conv1.weight': torch.zeros(1)}
    assert explain_mismatch('backbone', state, backbone().state_dict(), 'HiViT') is None
