"""What is wrong in a config is said in one line, with the name of the argument and its value."""

import copy
import re

import pytest

from itpn_mm.registry import MODELS

pytestmark = pytest.mark.checklist('fuzz-configs')
NAN = float('nan')
ARCH = dict(embed_dims=32, depths=(1, 1, 2), num_heads=2)
HIVIT = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=32)
VALID = dict(
    HiViT=HIVIT,
    FastiTPN=dict(HIVIT, type='itpn_mm.FastiTPN'),
    TransformerPyramidNeck=dict(in_channels=(8, 16, 32), out_channels=8),
    GlobalAveragePoolNorm=dict(in_channels=32),
    TokenMigration=dict(backbone=HIVIT, window_attention=True, gathering=True),
    RandomMasking=dict(),
    MIMDecoder=dict(in_channels=8, embed_dims=32, depth=1, num_heads=2, img_size=32),
    PixelReconstructionHead=dict(embed_dims=32),
    MFMHead=dict(stage_channels=(8, 16, 32), in_channels=32),
    EMATeacher=dict(backbone=HIVIT),
    AuxiliaryHead=dict(in_channels=32, num_heads=2, target_dims=8),
)
# (type, argument, values that are wrong); `arch.depths` is an entry of `arch`.
WRONG = [
    ('HiViT', 'arch', ('huge', None, 3, dict(embed_dims=32))),
    ('HiViT', 'arch.embed_dims', (30, 0, '32')),
    ('HiViT', 'arch.depths', ((1, 1), (1, 1, 0), 3, (1, 1, 2.0))),
    ('HiViT', 'arch.num_heads', (0, 2.0)),
    ('HiViT', 'img_size', (30, 0, '32', (32, 30), (32, 32, 32), None, 32.0)),
    ('HiViT', 'patch_size', (6, 0, -16, '16', None, 16.0)),
    ('HiViT', 'in_channels', (0, -3, '3', 3.0, None)),
    ('HiViT', 'stem_mlp_ratio', (0, -1, '3', NAN)),
    ('HiViT', 'mlp_ratio', (0, None)),
    ('HiViT', 'qkv_bias', ('no', None)),
    ('HiViT', 'patch_norm', ('LN',)),
    ('HiViT', 'use_abs_pos_emb', ('sincos',)),
    ('HiViT', 'rel_pos_bias', ('decoupled', True, ['block'])),
    ('HiViT', 'layer_scale_init_value', ('0.1', NAN)),
    ('HiViT', 'drop_rate', (1.5, -0.1, '0.1', NAN)),
    ('HiViT', 'drop_path_rate', (1, -0.1, '0.1', None)),
    ('HiViT', 'norm_eps', (0, -1e-6, '1e-6')),
    ('HiViT', 'interpolate_offset', (None, '0.1')),
    ('HiViT', 'out_indices', ((), (2, 1), (0, 3), 2, (0, 0))),
    ('HiViT', 'frozen_stages', (-2, 4, None, '2', 1.5)),
    ('HiViT', 'with_cp', ('yes', 3, (3,), (1, 0))),
    ('HiViT', 'depth', (12,)),
    ('FastiTPN', 'rel_pos_bias', ('decomposed',)),
    ('FastiTPN', 'sub_norm', (1,)),
    ('FastiTPN', 'swiglu', ('yes',)),
    ('FastiTPN', 'cls_token', (2,)),
    ('TransformerPyramidNeck', 'in_channels', ((8, 16), 32, (8, 16, 0), ())),
    ('TransformerPyramidNeck', 'out_channels', (0, '8', 8.0)),
    ('TransformerPyramidNeck', 'in_strides', ((4, 8), (4, 8, 32), 16)),
    ('TransformerPyramidNeck', 'out_strides', ((), (8, 4), (4, 4), (2, 4), (4, 256), 4)),
    ('TransformerPyramidNeck', 'depth', (-1, (1,), 1.5, None, (1, '1'), True)),
    ('TransformerPyramidNeck', 'mlp_ratio', (0, '4')),
    ('TransformerPyramidNeck', 'bias', ('yes',)),
    ('TransformerPyramidNeck', 'pool', ('mean', None, ['avg'])),
    ('TransformerPyramidNeck', 'concat_inputs', (3,)),
    ('TransformerPyramidNeck', 'norm_eps', (0,)),
    ('GlobalAveragePoolNorm', 'in_channels', (0, (8, 16))),
    ('GlobalAveragePoolNorm', 'gap_before_norm', ('yes',)),
    ('TokenMigration', 'backbone', (None,)),
    ('TokenMigration', 'ratio', (1, -0.1, '0.2', NAN, True)),
    ('TokenMigration', 'schedule', (dict(), dict(each=2), 4, dict(every=0), dict(first=3))),
    ('TokenMigration', 'schedule', (dict(layers=[2]), dict(layers=[]), dict(layers=[0, 0]))),
    ('TokenMigration', 'window_size', (1, 0, 4.0, '8', (4, 4))),
    ('TokenMigration', 'window_attention', (1, 'yes')),
    ('TokenMigration', 'global_layers', ((2,), (-1,), 3, [0, 1], (0, 0))),
    ('TokenMigration', 'gathering', ('mean',)),
    ('TokenMigration', 'rel_pos_bias', ('block', True)),
    ('RandomMasking', 'ratio', (0, 1, 1.5, -0.1, '0.75', None)),
    ('MIMDecoder', 'in_channels', (0, None)),
    ('MIMDecoder', 'strides', ((), (8, 4), (4, 6, 16), 16)),
    ('MIMDecoder', 'embed_dims', (24, 0, '32')),
    ('MIMDecoder', 'depth', (-1, 1.5)),
    ('MIMDecoder', 'num_heads', (0, 3)),
    ('MIMDecoder', 'mlp_ratio', (0,)),
    ('MIMDecoder', 'img_size', (30, 0, (32, 32))),
    ('MIMDecoder', 'patch_size', (8, 0)),
    ('PixelReconstructionHead', 'patch_size', (0, '16')),
    ('PixelReconstructionHead', 'norm_pix', ('yes',)),
    ('PixelReconstructionHead', 'loss_weight', (0, NAN, '1')),
    ('MFMHead', 'positions', ('all', None)),
    ('MFMHead', 'stage_channels', ((8, 16), 32, (8, 16, 0))),
    ('MFMHead', 'loss_weight', (0, -1, '0.3')),
    ('EMATeacher', 'momentum', (0, 1, '0.9', None)),
    ('AuxiliaryHead', 'num_heads', (0, 3)),
    ('AuxiliaryHead', 'tap', (1, -0.1, None)),
    ('AuxiliaryHead', 'drop_path_rates', ((0.1,), (0.1, 0.1, 0.1))),
    ('AuxiliaryHead', 'loss', ('l1',)),
]
CASES = [(kind, name, value) for kind, name, values in WRONG for value in values]
PRETRAINING = ('RandomMasking', 'MIMDecoder', 'PixelReconstructionHead', 'MFMHead', 'EMATeacher')
# Arguments of a head of MaskDINO.
WRONG_MASKDINO = [
    ('num_classes', (0, '3')),
    ('num_queries', (0, None)),
    ('feat_channels', (48, 0)),
    ('out_channels', (0,)),
    ('in_channels', (8, (6, 0))),
    ('pixel_decoder.num_levels', (0, 6)),
    ('pixel_decoder.num_layers', (-1, '1')),
    ('pixel_decoder.num_heads', (0,)),
    ('transformer_decoder.num_layers', (-1, 1.5)),
    ('transformer_decoder.num_points', (0,)),
    ('denoising.num_queries', (-1, '6')),
    ('denoising.noise_scale', (-0.1, 2.5, None)),
    ('two_stage', ('yes',)),
    ('box_init', ('mask', None)),
]
CASES_MASKDINO = [(name, value) for name, values in WRONG_MASKDINO for value in values]


def test_there_are_enough(record_figure):
    cases = len(CASES) + len(CASES_MASKDINO)
    record_figure('invalid configs that are named', cases, '>= 100')
    assert cases >= 100


def check(error: Exception, name: str, value: object) -> None:
    """One line, with the argument, and its value unless there is no such argument."""
    message = str(error)
    assert '\n' not in message
    assert re.search(rf'\b{name}\b', message), message
    assert 'unexpected keyword' in message or repr(value) in message or str(value) in message


@pytest.mark.parametrize('kind, name, value', CASES)
def test_invalid_argument(kind, name, value):
    if kind in PRETRAINING or kind == 'AuxiliaryHead':
        pytest.importorskip('mmpretrain')
    cfg = copy.deepcopy(VALID[kind])
    cfg['type'] = f'itpn_mm.{kind}'
    owner, *key = name.split('.')
    if key:
        cfg[owner][key[0]] = value
    else:
        cfg[owner] = value
    if kind == 'EMATeacher':
        cfg['backbone'] = MODELS.build(cfg['backbone'])
    with pytest.raises((ValueError, TypeError)) as error:
        MODELS.build(cfg)
    check(error.value, name.split('.')[-1], value)


@pytest.mark.parametrize('name, value', CASES_MASKDINO)
def test_invalid_argument_of_maskdino(name, value):
    pytest.importorskip('mmdet')
    from ..test_maskdino.heads import head_options, tiny_head

    owner, *key = name.split('.')
    options = {owner: dict(head_options()[owner], **{key[0]: value}) if key else value}
    with pytest.raises((ValueError, TypeError)) as error:
        tiny_head(**options)
    check(error.value, name.split('.')[-1], value)


PARTS = [
    ('neck.in_channels', (8, 16, 33)),
    ('neck.in_strides', (2, 4, 8)),
    ('neck.out_strides', (4, 8)),
    ('decoder.in_channels', 16),
    ('decoder.strides', (8, 16)),
    ('decoder.embed_dims', 64),
    ('head.embed_dims', 64),
    ('head.patch_size', 8),
    ('mfm_head.in_channels', 16),
    ('mfm_head.stage_channels', (8, 16, 48)),
    ('mfm_head.strides', (2, 4, 8)),
]


@pytest.mark.parametrize('name, value', PARTS)
def test_parts_of_the_pretraining_that_do_not_fit(name, value):
    """The message names the argument, or the one which it contradicts."""
    pytest.importorskip('mmpretrain')
    from ..test_pretraining.models import build_itpn

    with pytest.raises(ValueError) as error:
        build_itpn(**{name.replace('.', '__'): value})
    part, argument = name.split('.')
    assert part in str(error.value) or argument in str(error.value)
    assert '\n' not in str(error.value)
    assert re.search(re.escape(str(value)), str(error.value)), str(error.value)
