"""Checkpoints of accelerated models and of others load into each other."""

import logging

import pytest
import torch
from torch import nn

from itpn_mm.acceleration import SETTINGS, TokenMigration
from itpn_mm.checkpoint import load_pretrained
from itpn_mm.checkpoint.architecture import inspect
from itpn_mm.checkpoint.mismatch import explain_mismatch
from itpn_mm.checkpoint.model_config import config_text
from itpn_mm.registry import MODELS

from .models import ARCH, authors_state, backbone, fast_backbone, pretrained, save_authors, state_of

SIZE = 3  # of the windows, in tokens
PREFIX = 'acceleration.'


def accelerated(setting: str = 'gathering-rpe', make=backbone, size: int = SIZE, **kwargs):
    """An accelerated backbone whose new parameters have values of their own."""
    model = TokenMigration(make(), **{**SETTINGS[setting], 'window_size': size, **kwargs})
    for parameter in model.acceleration.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.fixture(params=['ours', 'alone', 'authors'])
def dense_file(request, tmp_path):
    """A file without acceleration, and the weights in it."""
    path = tmp_path / 'dense.pth'
    model = backbone()
    if request.param == 'authors':
        save_authors(path, authors_state())
        load_pretrained(model, str(path))
    elif request.param == 'alone':
        torch.save(model.state_dict(), path)
    else:
        torch.save(dict(state_dict=state_of(backbone=model)), path)
    return path, model.state_dict()


@pytest.mark.parametrize('setting', ['migration-20', 'gathering-rpe', 'all'])
def test_dense_file_into_an_accelerated_model(dense_file, log, setting):
    path, dense = dense_file
    config = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64, init_cfg=pretrained(path))
    model = MODELS.build(
        dict(type='itpn_mm.TokenMigration', backbone=config, window_size=SIZE, **SETTINGS[setting])
    )
    new = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(PREFIX)}
    model.init_weights()
    found = model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in {**dense, **new}.items())
    assert found.keys() == dense.keys() | new.keys()
    level, text = next((level, text) for level, text in log if 'loaded from' in text)
    assert '100.00% of the values' in text
    missing = f'missing:    {len(new)} (keep their initial values): acceleration.gathering_token'
    assert (missing in text, level) == ((True, logging.WARNING) if new else (False, logging.INFO))


def test_accelerated_file_into_a_dense_model(tmp_path, log):
    model = accelerated()
    torch.save(dict(state_dict=state_of(backbone=model)), path := tmp_path / 'a.pth')
    dense = backbone(init_cfg=pretrained(path))
    dense.init_weights()
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in dense.state_dict().items())
    level, text = next((level, text) for level, text in log if 'loaded from' in text)
    number = sum(key.startswith(PREFIX) for key in state)
    assert f'ignored:    {number} on purpose' in text and level == logging.INFO
    assert 'acceleration that the model does not have: acceleration.gathering_token' in text


@pytest.mark.parametrize('make', [backbone, fast_backbone])
@pytest.mark.parametrize('loader', ['pretrained', 'plain'])
@pytest.mark.parametrize(
    'source, target', [('gathering-rpe', 'windows-rpe'), ('windows-rpe', 'gathering-rpe')]
)
def test_another_setting_and_window_size(tmp_path, make, loader, source, target):
    source = accelerated(source, make)
    target = accelerated(target, make, size=5, global_layers=(0,))
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    if loader == 'plain':
        target.load_state_dict(source.state_dict(), strict=False)
    else:
        torch.save(dict(state_dict=state_of(backbone=source)), path := tmp_path / 'a.pth')
        report = load_pretrained(target, str(path))
        resized = {'acceleration.rel_pos.table': ((25, 2), (81, 2))}
        assert report.resized == resized and not report.unexpected
        assert report.loaded_share == 1
    table = 'acceleration.rel_pos.table'
    for key, tensor in target.state_dict().items():
        if key == table:  # resampled: the bias of a token to itself stays in the middle
            assert tensor.shape == (81, 2)
            middle = source.state_dict()[table][12]
            assert torch.allclose(tensor[40], middle, atol=1e-5)
        else:
            assert torch.equal(tensor, source.state_dict().get(key, before[key])), key


def test_cross_table_of_another_grid():
    """As of a version that makes it for more windows."""
    model = accelerated()
    name = 'acceleration.cross_rel_pos.table'
    rows = model.state_dict()[name].shape[0]
    model.load_state_dict({name: torch.full((9, 2), 0.5)}, strict=False)
    table = model.state_dict()[name]
    assert table.shape == (rows, 2) and torch.allclose(table, torch.tensor(0.5))


@pytest.mark.parametrize(
    'setting, kwargs, expected',
    [
        ('dense', {}, None),
        ('migration-20', {}, None),
        ('windows', {}, None),
        ('windows-rpe', {}, dict(gathering=False, rel_pos_bias='window', window_size=SIZE)),
        ('gathering', {}, dict(gathering=True)),
        ('gathering', dict(global_layers=[1]), dict(gathering=True, global_layers=(1,))),
        ('gathering-rpe', {}, dict(gathering=True, rel_pos_bias='all', window_size=SIZE)),
        ('all', {}, dict(gathering=True, rel_pos_bias='window', window_size=SIZE)),
    ],
)
def test_inspect(setting, kwargs, expected):
    state = state_of(backbone=accelerated(setting, **kwargs))
    found = inspect(state)['backbone']
    if expected is not None:
        expected = dict(window_attention=True, **expected)
    assert found['acceleration'] == expected
    assert found['num_heads'] == (2 if expected and 'rel_pos_bias' in expected else None)
    assert found['rel_pos_bias'] is None


def test_mismatch_of_the_backbone_is_seen_through_the_acceleration():
    heads = dict(ARCH, num_heads=4)
    states = [accelerated(make=lambda arch=arch: backbone(arch)) for arch in (ARCH, heads)]
    message = explain_mismatch('backbone', *(m.state_dict() for m in states), 'HiViT')
    assert message.startswith('has num_heads=2 but HiViT was built with num_heads=4')
    states[1] = backbone()
    assert explain_mismatch('backbone', *(m.state_dict() for m in states), 'HiViT') is None


@pytest.mark.parametrize('setting', ['windows-rpe', 'gathering', 'gathering-rpe'])
def test_snippet_builds_the_accelerated_backbone(setting):
    state = state_of(backbone=accelerated(setting, make=fast_backbone))
    config = eval(f'dict({config_text(state, "a.pth")})')['backbone']
    assert config['type'] == 'itpn_mm.TokenMigration'
    assert config['backbone']['init_cfg'] == pretrained('a.pth')
    model = MODELS.build(config)
    model.load_state_dict(
        {key.removeprefix('backbone.'): tensor for key, tensor in state.items()}, strict=True
    )
    assert (model.acceleration.window_size == SIZE) == ('rpe' in setting)
