"""Arguments that do not fit: errors that name argument, value and what would be right."""

import pytest
import torch
from torch import nn

from itpn_mm.acceleration import TokenMigration, trace_migration
from itpn_mm.backbones import FastiTPN

from .models import HEADS, WIDTH, accelerated, images, plain

DEPTH = 4
WINDOWS = dict(window_attention=True)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(ratio=-0.1), r'`ratio` must be .*\[0, 1\), but got -0.1'),
        (dict(ratio=1), r'`ratio` must be .*\[0, 1\), but got 1'),
        (dict(ratio=float('nan')), r'`ratio` must be .*\[0, 1\), but got nan'),
        (dict(ratio='0.2'), r"`ratio` must be .*\[0, 1\), but got '0.2'"),
        (dict(schedule={}), r'`schedule` must be one of .*every.*first.*layers.* but got {}'),
        (dict(schedule='every'), r"`schedule` must be one of .* but got 'every'"),
        (dict(schedule=dict(each=1)), r"`schedule` must be one of .* but got {'each': 1}"),
        (dict(schedule=dict(every=1, first=2)), r'`schedule` must be one of .* but got .*first'),
        (dict(schedule=dict(every=0)), r"`schedule` {'every': 0}.* `every` must be"),
        (dict(schedule=dict(every=1.5)), r"`schedule` {'every': 1.5}.* `every` must be"),
        (dict(schedule=dict(first=0)), r"`schedule` {'first': 0}.* `first` must be 1 to 4"),
        (dict(schedule=dict(first=5)), r"`schedule` {'first': 5}.* `first` must be 1 to 4"),
        (dict(schedule=dict(layers=[])), r'`layers` must be .* 0 to 3.* but got \[\]'),
        (dict(schedule=dict(layers=[4])), r'`layers` must be .* 0 to 3.* but got \[4\]'),
        (dict(schedule=dict(layers=[-1])), r'`layers` must be .* 0 to 3.* but got \[-1\]'),
        (dict(schedule=dict(layers=[1, 1])), r'`layers` must be .* but got \[1, 1\]'),
        (dict(schedule=dict(layers=2)), r'`layers` must be .* but got 2'),
        (
            dict(ratio=0.6, schedule=dict(layers=[2])),
            r"`schedule` {'layers': \[2\]} with `ratio` 0.6 takes 0.6 .* at layer 2.* half",
        ),
        (
            dict(ratio=0.95, schedule=dict(every=1)),
            r"`schedule` {'every': 1} with `ratio` 0.95 takes .* at layer 3.* half",
        ),
        (dict(window_size=1), r'`window_size` must be .* at least 2.* but got 1'),
        (dict(window_size=2.5), r'`window_size` must be .* at least 2.* but got 2.5'),
        (dict(window_size=(4, 4)), r'`window_size` must be .* at least 2.* but got \(4, 4\)'),
        (dict(gathering=True), r'`gathering=True` needs `window_attention=True`'),
        (dict(rel_pos_bias='window'), r"`rel_pos_bias='window'` needs `window_attention=True`"),
        (dict(WINDOWS, rel_pos_bias='all'), r"`rel_pos_bias='all'` needs `gathering=True`"),
        (dict(WINDOWS, rel_pos_bias='hrpe'), r"`rel_pos_bias` must be one of .* but got 'hrpe'"),
        (dict(global_layers=[1]), r'`global_layers=\[1\]` needs `window_attention=True`'),
        (dict(WINDOWS, global_layers=[4]), r'`global_layers` must be .* 0 to 3.* but got \[4\]'),
        (dict(WINDOWS, global_layers=range(4)), r'`global_layers` \[0, 1, 2, 3\] are all layers'),
        (dict(WINDOWS, global_layers=2), r'`global_layers` must be .* but got 2'),
        (dict(WINDOWS, global_layers=[1.0]), r'`global_layers` must be .* but got \[1.0\]'),
    ],
)
def test_arguments(options, message):
    model = plain(depth=DEPTH)
    with pytest.raises(ValueError, match=message) as error:
        TokenMigration(model, **options)
    assert '\n' not in str(error.value)
    assert not [key for key in model.state_dict() if 'acceleration' in key]  # it is as it was


@pytest.mark.parametrize('rel_pos', ['block', 'shared', 'decoupled'])
@pytest.mark.parametrize('new', ['window', 'all'])
def test_two_relative_positions_exclude_each_other(rel_pos, new):
    model = plain(FastiTPN, rel_pos_bias=rel_pos)
    with pytest.raises(ValueError, match=rf'`rel_pos_bias.*{new}.* None'):
        TokenMigration(model, **WINDOWS, gathering=True, rel_pos_bias=new)


@pytest.mark.parametrize(
    'backbone, name',
    [
        (nn.Linear(2, 2), 'Linear'),
        (dict(type='itpn_mm.TransformerPyramidNeck'), 'TransformerPyramidNeck'),
        (None, 'NoneType'),
    ],
)
def test_only_backbones_of_ours(backbone, name):
    with pytest.raises(ValueError, match=rf'`backbone` .*HiViT.*FastiTPN.* but got {name}'):
        TokenMigration(backbone)


def test_a_backbone_is_wrapped_once():
    arch = dict(embed_dims=WIDTH, depths=(1, 1, 2), num_heads=HEADS)
    inner = dict(type='itpn_mm.HiViT', arch=arch)
    nested = dict(type='itpn_mm.TokenMigration', backbone=inner)
    for backbone in (accelerated(plain()), nested):
        with pytest.raises(ValueError, match='`backbone` has an acceleration already'):
            TokenMigration(backbone)


def test_a_typing_error_in_a_config_is_not_ignored():
    with pytest.raises(TypeError, match='windowsize'):
        TokenMigration(plain(), windowsize=3)


def test_there_is_nothing_to_trace_in_a_plain_backbone():
    with pytest.raises(ValueError, match='`backbone` has no acceleration'):
        trace_migration(plain(), images((4, 4)))


@pytest.mark.parametrize('options', [dict(ratio=0.3), WINDOWS])
def test_masked_images_are_refused(options):
    model, keep = accelerated(plain(), **options), torch.arange(4).unsqueeze(0)
    with pytest.raises(ValueError, match='whole images'):
        model.forward_stages(images((4, 4)), keep)


@pytest.mark.checklist('equivalences')
@torch.no_grad()
def test_a_window_larger_than_the_grid_is_one_window():
    """Not an error: small images occur."""
    model, x = accelerated(plain(), ratio=0.3, **WINDOWS, window_size=16), images((3, 5))
    assert model.eval()(x)[2].isfinite().all()
    assert model.acceleration.tokens_per_layer(3, 5)[-1] == 15 - 4
