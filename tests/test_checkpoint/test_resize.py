import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from itpn_mm.checkpoint.resize import resize_positions
from tests.golden import assert_matches, load

from .models import backbone, fast_backbone


def with_values(model: nn.Module) -> nn.Module:
    """The model with random values in the relative position tables, which start at zero."""
    for name, parameter in model.named_parameters():
        if 'rel_pos' in name:
            nn.init.normal_(parameter)
    return model


def plain_load(model, state):
    model.load_state_dict(state)


def mmengine_load(model, state):
    load_state_dict(model, state, strict=True)


def nested(model, levels):
    """The model `levels` deep in other modules, and the prefix of its names."""
    prefix = ''
    for name in ('backbone', 'model', 'module')[:levels]:
        model, prefix = nn.ModuleDict({name: model}), f'{name}.{prefix}'
    return model, prefix


@pytest.mark.parametrize('levels', [0, 1, 3])
@pytest.mark.parametrize('loader', [plain_load, mmengine_load])
@pytest.mark.parametrize('kind', [None, 'block', 'shared', 'decomposed'])
def test_loads_at_another_grid(levels, loader, kind):
    source = with_values(backbone(img_size=64, rel_pos_bias=kind))
    target = backbone(img_size=96, rel_pos_bias=kind)
    outer, prefix = nested(target, levels)
    state = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    before = {key: tensor.clone() for key, tensor in state.items()}
    loader(outer, state)

    assert all(torch.equal(state[key], before[key]) for key in before)  # the caller's dict is his
    loaded, original = target.state_dict(), source.state_dict()
    for key in original:
        if key != 'pos_embed' and 'rel_pos' not in key:
            assert torch.equal(loaded[key], original[key])
    pos = original['pos_embed'].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    pos = F.interpolate(pos, (6, 6), mode='bicubic').permute(0, 2, 3, 1).reshape(1, 36, 32)
    torch.testing.assert_close(loaded['pos_embed'], pos)
    tables = [key for key in original if key.endswith(('table', 'table_h', 'table_w'))]
    assert len(tables) == {None: 0, 'block': 2, 'shared': 1, 'decomposed': 4}[kind]
    for key in tables:
        old = original[key].t()[None]
        if kind == 'decomposed':
            new = F.interpolate(old, 11, mode='linear')[0].t()
        else:
            new = F.interpolate(old.view(1, 2, 7, 7), (11, 11), mode='bicubic')[0].flatten(1).t()
        torch.testing.assert_close(loaded[key], new)


def test_rectangular_target():
    source, target = (
        backbone(rel_pos_bias='block'),
        backbone(img_size=(64, 128), rel_pos_bias='block'),
    )
    resized = resize_positions(target, state := dict(source.state_dict()))
    assert resized['pos_embed'] == ((1, 16, 32), (1, 32, 32))
    assert resized['stages.2.0.attn.rel_pos.table'] == ((49, 2), (7 * 15, 2))
    target.load_state_dict(state)
    again = backbone(img_size=(64, 128), rel_pos_bias='block')
    assert resize_positions(again, dict(target.state_dict())) == {}  # its own grid: as it is
    again.load_state_dict(target.state_dict())
    assert torch.equal(again.pos_embed, target.pos_embed)


@pytest.mark.parametrize('kind, name', [(None, 'pos_embed'), ('shared', 'rel_pos.table')])
def test_source_that_is_not_square(kind, name):
    source = backbone(img_size=(64, 96), rel_pos_bias=kind)
    state = source.state_dict()
    if kind:
        state.pop('pos_embed')
    with pytest.raises(
        ValueError, match=rf'`module\.{name}` of shape .* not that of a square grid'
    ):
        nn.ModuleDict({'module': backbone(rel_pos_bias=kind)}).load_state_dict(
            {f'module.{key}': tensor for key, tensor in state.items()}, strict=False
        )


def test_even_number_of_rows_is_no_table():
    state = {'rel_pos.table': torch.zeros(64, 2)}
    with pytest.raises(ValueError, match='number of rows is not that of a square grid'):
        resize_positions(backbone(rel_pos_bias='shared'), state)


def test_other_widths_are_left_to_torch():
    wide = backbone(dict(embed_dims=64, depths=(1, 1, 2), num_heads=4), rel_pos_bias='block')
    target = backbone(img_size=96, rel_pos_bias='block')
    assert resize_positions(target, dict(wide.state_dict())) == {}
    with pytest.raises(RuntimeError, match='size mismatch for pos_embed'):
        target.load_state_dict(wide.state_dict())


def test_half_precision_keeps_its_type():
    state = {'pos_embed': backbone().pos_embed.detach().half()}
    resize_positions(backbone(img_size=128), state)
    assert state['pos_embed'].dtype == torch.half and state['pos_embed'].shape == (1, 64, 32)


def test_copies_resize_to_their_own_grid():
    """The EMA teacher is a deep copy of the backbone."""
    copied = copy.deepcopy(backbone(img_size=96))
    copied.load_state_dict(backbone().state_dict())
    assert copied.pos_embed.shape == (1, 36, 32)


@pytest.mark.parametrize(
    'case', ['table_14_to_14', 'table_14_to_32', 'table_14_to_8', 'table_4_to_6']
)
def test_golden_loading_of_a_joint_table(case):
    """The authors' loader for detection and segmentation resizes tables in the same way."""
    fixture = load('i4_rel_pos_table_bicubic')
    size = int(case.rpartition('_')[2])
    arch = dict(embed_dims=12, depths=(1, 1, 1), num_heads=3)
    model = backbone(arch, img_size=16 * size, rel_pos_bias='shared')
    resize_positions(model, state := {'rel_pos.table': fixture[f'in/{case}']})
    expected = fixture[f'out/{case}']
    assert_matches(state['rel_pos.table'], expected, 'i4_rel_pos_table_bicubic', case)


@pytest.mark.parametrize(
    'case', ['table_14_to_14', 'table_14_to_16', 'table_14_to_24', 'table_14_to_8', 'table_4_to_6']
)
def test_golden_loading_of_a_joint_table_of_fast_itpn(case):
    """In geometric progression; the rows of the class token stay as they are."""
    fixture = load('i3_rel_pos_table_geometric')
    size = int(case.rpartition('_')[2])
    model = fast_backbone(img_size=16 * size, cls_token=True, rel_pos_bias='shared')
    resize_positions(model, state := {'rel_pos.table': fixture[f'in/{case}']})
    expected = fixture[f'out/{case}']
    assert torch.equal(state['rel_pos.table'][-3:], fixture[f'in/{case}'][-3:])
    assert_matches(state['rel_pos.table'], expected, 'i3_rel_pos_table_geometric', case)


@pytest.mark.parametrize('case', ['decoupled_14_to_16', 'decoupled_14_to_24', 'decoupled_4_to_6'])
def test_golden_loading_of_decoupled_tables(case):
    fixture = load('i3_rel_pos_table_geometric')
    size = int(case.rpartition('_')[2])
    model = fast_backbone(img_size=16 * size, cls_token=True, rel_pos_bias='decoupled')
    table = fixture[f'in/{case}']
    resize_positions(model, state := {'rel_pos.table_h': table, 'rel_pos.table_w': table})
    for tensor in state.values():
        assert_matches(tensor, fixture[f'out/{case}'], 'i3_rel_pos_table_geometric', case)


@pytest.mark.parametrize('cls_token', [False, True])
@pytest.mark.parametrize('kind', [None, 'block', 'shared', 'decoupled'])
def test_fast_itpn_loads_at_another_grid(kind, cls_token):
    common = dict(rel_pos_bias=kind, cls_token=cls_token)
    source = with_values(fast_backbone(**common))
    target = fast_backbone(img_size=(96, 128), **common)
    resized = resize_positions(target, state := dict(source.state_dict()))
    target.load_state_dict(state, strict=True)
    assert resized['pos_embed'][1] == (1, 48 + cls_token, 32)
    assert len(resized) == 1 + {None: 0, 'block': 2, 'shared': 1, 'decoupled': 2}[kind]
    if cls_token:
        assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0])
    body = source.pos_embed[:, int(cls_token) :].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    body = F.interpolate(body, (6, 8), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(target.pos_embed[:, int(cls_token) :], body)


@pytest.mark.parametrize('cls_token', [False, True])
@pytest.mark.parametrize(
    'kind, name',
    [
        (None, 'pos_embed'),
        ('shared', 'rel_pos.table'),
        ('block', 'stages.2.1.attn.rel_pos.table'),
        ('decoupled', 'rel_pos.table_w'),
    ],
)
def test_class_token_on_one_side_only(kind, name, cls_token):
    source = fast_backbone(rel_pos_bias=kind, cls_token=cls_token)
    target = fast_backbone(rel_pos_bias=kind, cls_token=not cls_token)
    state = {name: source.state_dict()[name]}
    theirs, ours = ('with', 'without') if cls_token else ('without', 'with')
    with pytest.raises(
        ValueError,
        match=rf'`{name}` of shape .* is that of a model {theirs} a class token, but this one is '
        rf'{ours}: build the backbone with `cls_token={cls_token}`',
    ):
        resize_positions(target, state)


def test_class_token_and_no_such_argument():
    """HiViT has no class token at all."""
    state = {'pos_embed': fast_backbone(cls_token=True).state_dict()['pos_embed']}
    with pytest.raises(ValueError, match='a model with a class token, but this one is without'):
        resize_positions(backbone(), state)
