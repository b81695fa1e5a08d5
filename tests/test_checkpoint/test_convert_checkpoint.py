import os

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from itpn_mm.acceleration import SETTINGS
from itpn_mm.checkpoint import read_checkpoint, remap
from itpn_mm.registry import MODELS

from .models import authors_state, save_authors


@pytest.mark.parametrize('name, options', [('b.pth', ()), ('b.bin', ('--format', 'safetensors'))])
def test_converts(convert, tmp_path, name, options):
    state = authors_state('b1_pixel_cls_rpe')
    state['blocks.0.norm2.weight'] = state['blocks.0.norm2.weight'].half()
    src = save_authors(tmp_path / 'a.pth', state)
    done = convert(src, tmp_path / name, *options)
    assert done.error is None
    expected = remap(state)[0]
    found = read_checkpoint(tmp_path / name)
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key].float()) and found[key].dtype == torch.float32
    assert 'absolute_pos_embed -> backbone.pos_embed' in done.stdout
    assert 'relative_position_index left out: an index that the model computes' in done.stdout
    assert f'{len(expected)} tensors written, 1 left out on purpose' in done.stdout
    assert (
        "rel_pos_bias='block'" in done.stdout and f"load_from = '{tmp_path / name}'" in done.stdout
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', name]


def test_converts_in_place(convert, tmp_path):
    path = save_authors(tmp_path / 'a.pth', authors_state())
    assert convert(path, path).error is None
    assert read_checkpoint(path).keys() == remap(authors_state())[0].keys()
    done = convert(path, tmp_path / 'b.safetensors')  # what is converted converts to itself
    assert done.error is None and 'our layout' in done.stdout
    assert read_checkpoint(tmp_path / 'b.safetensors').keys() == read_checkpoint(path).keys()


class Odd:
    """An object that reading weights alone refuses."""

    def __reduce__(self):
        return os.getcwd, ()


def test_trust_needs_the_flag(convert, tmp_path):
    src = tmp_path / 'a.pth'
    torch.save(dict(model=authors_state(), config=Odd()), src)
    done = convert(src, tmp_path / 'b.pth')
    assert '\n' not in done.error and 'getcwd' in done.error and '--trust' in done.error
    assert not (tmp_path / 'b.pth').exists()
    done = convert(src, tmp_path / 'b.pth', '--trust')
    assert done.error is None and (tmp_path / 'b.pth').exists()


@pytest.mark.parametrize(
    'state, message',
    [
        ({'conv1.weight': torch.zeros(1)}, 'neither a file of the authors nor of itpn_mm'),
        ({**authors_state(), 'cls_token': torch.zeros(1)}, '1 of its names are unknown: cls_token'),
    ],
)
def test_other_files_are_refused(convert, tmp_path, state, message):
    torch.save(state, tmp_path / 'a.pth')
    done = convert(tmp_path / 'a.pth', tmp_path / 'b.pth')
    assert message in done.error and '\n' not in done.error
    assert not (tmp_path / 'b.pth').exists()


def test_to_the_authors_and_back(convert, tmp_path):
    """Converted there and back again, a file is what it was."""
    state = authors_state('g08_fast_cls_sharedrelpos')
    src, ours, back = (tmp_path / name for name in ('a.pth', 'b.safetensors', 'c.pth'))
    save_authors(src, state)
    assert convert(src, ours).error is None
    done = convert(ours, back, '--to', 'authors')
    assert done.error is None
    assert 'rel_pos_bias.relative_position_index added' in done.stdout
    assert 'q_proj.weight, blocks.4.attn.k_proj.weight, blocks.4.attn.v_proj.weight' in done.stdout
    assert f'{len(state)} tensors written' in done.stdout
    found = torch.load(back, weights_only=True)['model']
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    sizes = {t.untyped_storage().nbytes() - t.numel() * t.element_size() for t in found.values()}
    assert sizes == {0}  # no tensor drags a larger one along


@pytest.mark.parametrize('to', ['ours', 'authors'])
@pytest.mark.parametrize('part, prefix', [('backbone', 'backbone.'), ('pyramid', 'neck.')])
def test_part(convert, tmp_path, part, prefix, to):
    src = save_authors(tmp_path / 'a.pth', authors_state())
    done = convert(src, dst := tmp_path / 'b.pth', '--part', part, '--to', to)
    assert done.error is None
    ours = {k: v for k, v in remap(authors_state())[0].items() if k.startswith(prefix)}
    expected = ours if to == 'ours' else remap(ours, to='authors')[0]
    assert read_checkpoint(dst).keys() == expected.keys()
    assert ('backbone=dict(' in done.stdout) == (part == 'backbone')
    assert ('neck=dict(' in done.stdout) == (part == 'pyramid')


def test_part_that_is_not_there(convert, tmp_path):
    src = save_authors(tmp_path / 'a.pth', authors_state('b2_pixel_cls'))
    done = convert(src, tmp_path / 'b.pth', '--part', 'pyramid')
    assert done.error == f'{src}: holds no pyramid' and not (tmp_path / 'b.pth').exists()


def test_half(convert, tmp_path):
    src = save_authors(tmp_path / 'a.pth', authors_state('b1_pixel_cls_rpe'))
    for options in ((), ('--to', 'authors')):
        done = convert(src, tmp_path / 'b.pth', '--half', *options)
        assert done.error is None
        types = {k: t.dtype for k, t in read_checkpoint(tmp_path / 'b.pth').items()}
        assert types.pop('relative_position_index', torch.int64) == torch.int64
        assert set(types.values()) == {torch.float16}


def test_inspect_writes_nothing(convert, tmp_path):
    src = save_authors(tmp_path / 'a.pth', authors_state())
    done = convert(src, '--inspect')
    assert done.error is None and sorted(tmp_path.iterdir()) == [src]
    assert f'{src}: the layout of the authors, pre-training with pixels' in done.stdout
    assert "type='itpn_mm.iTPN'" in done.stdout and f"load_from = '{src}'" in done.stdout
    assert 'neck: ' in done.stdout and 'types: float32' in done.stdout
    for arguments in ((src, tmp_path / 'b.pth', '--inspect'), (src,)):
        assert convert(*arguments).error == '2'  # usage
    assert sorted(tmp_path.iterdir()) == [src]


def test_moving_average(convert, tmp_path):
    state = authors_state('b2_pixel_cls')
    average = {key: tensor + 1 for key, tensor in state.items()}
    torch.save(dict(model=state, model_ema=average), src := tmp_path / 'a.pth')
    for options, expected in (((), state), (('--ema',), average)):
        assert convert(src, tmp_path / 'b.pth', *options).error is None
        found = read_checkpoint(tmp_path / 'b.pth')
        assert torch.equal(found['head.fc.bias'], expected['head.bias'])


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_folder_is_made(convert, tmp_path, suffix):
    src = save_authors(tmp_path / 'a.pth', authors_state())
    done = convert(src, target := tmp_path / 'new' / 'folder' / f'b.{suffix}')
    assert done.error is None
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize(
    ('suffix', 'writer', 'error'),
    [
        ('pth', 'torch.save', RuntimeError),
        ('safetensors', 'itpn_mm.checkpoint.convert.save_file', SafetensorError),
    ],
)
def test_full_disk_is_told(convert, tmp_path, monkeypatch, suffix, writer, error):
    """An older file stays, and no part of the new one does."""
    src = save_authors(tmp_path / 'a.pth', authors_state())
    (target := tmp_path / f'b.{suffix}').write_text('older')

    def fail(*args, **kwargs):
        target.with_name(f'{target.name}.part').write_text('half')
        raise error('PytorchStreamWriter failed writing file\nat some line')

    monkeypatch.setattr(writer, fail)
    assert convert(src, target).error == (
        f'{target}: not written (PytorchStreamWriter failed writing file)'
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', target.name]
    assert target.read_text() == 'older'


def test_what_the_authors_have_not_is_refused(convert, tmp_path):
    state = {**remap(authors_state())[0], 'backbone.extra': torch.zeros(1)}
    torch.save(dict(state_dict=state), src := tmp_path / 'a.pth')
    done = convert(src, tmp_path / 'b.pth', '--to', 'authors')
    assert 'a.pth: cannot become a file of the authors' in done.error
    assert not (tmp_path / 'b.pth').exists()


def accelerated_model(stdout: str) -> nn.Module:
    """What the printed config builds."""
    lines = stdout.splitlines()
    starts = ('model = ', 'backbone=')
    text = '\n'.join(lines[next(i for i, line in enumerate(lines) if line.startswith(starts)) :])
    config = {}
    if text.startswith('model = '):
        exec(text, config)
        return MODELS.build(config['model'])
    return MODELS.build(eval(f'dict({text})')['backbone'])


@pytest.mark.parametrize('name', ['b2_pixel_cls', 'g05_fast_cls_meanpool', 'a1_pixel_pretrain'])
@pytest.mark.parametrize('setting', ['migration-20', 'gathering-hrpe', 'all'])
def test_accelerate(convert, tmp_path, name, setting):
    pytest.importorskip('mmpretrain')
    src = save_authors(tmp_path / 'a.pth', authors_state(name))
    part = ('--part', 'backbone') if 'pretrain' in name else ()
    options = (*part, '--accelerate', setting, '--window-size', 3)
    done = convert(src, tmp_path / 'b.pth', *options)
    assert done.error is None
    model = accelerated_model(done.stdout)
    own = getattr(model, 'backbone', model)
    assert own.acceleration.window_size == 3
    assert own.acceleration.schedule.ratio == SETTINGS[setting].get('ratio', 0)
    state = read_checkpoint(tmp_path / 'b.pth')
    if own is model:
        model.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    else:
        model.load_state_dict(state)
    new = [key for key in state if key.startswith('backbone.acceleration.')]
    assert all(f'  {key} added' in done.stdout for key in new)
    zero = [key for key in new if not state[key].any()]
    assert set(new) - set(zero) == ({new[0]} if new else set())  # the gathering token alone
    assert bool(new) == (setting != 'migration-20')

    convert(src, tmp_path / 'c.pth', *options)
    again = read_checkpoint(tmp_path / 'c.pth')
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    done = convert(tmp_path / 'b.pth', '--inspect')
    assert ('a file does not tell `ratio`' in done.stdout) == bool(new)


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('a1_pixel_pretrain', (), 'a pre-training has no acceleration; take its backbone: `--part'),
        ('a1_pixel_pretrain', ('--part', 'pyramid'), 'holds no backbone'),
        ('b2_pixel_cls', ('--window-size', 1), '`window_size` must be'),
        ('b2_pixel_cls', ('--to', 'authors'), '2'),
    ],
)
def test_what_cannot_be_accelerated(convert, tmp_path, name, options, message):
    src = save_authors(tmp_path / 'a.pth', authors_state(name))
    done = convert(src, tmp_path / 'b.pth', '--accelerate', 'gathering', *options)
    assert message in done.error and '\n' not in done.error
    assert not (tmp_path / 'b.pth').exists()


def test_accelerate_once(convert, tmp_path):
    src = save_authors(tmp_path / 'a.pth', authors_state('b2_pixel_cls'))
    assert convert(src, tmp_path / 'b.pth', '--accelerate', 'gathering').error is None
    done = convert(tmp_path / 'b.pth', tmp_path / 'c.pth', '--accelerate', 'gathering')
    assert 'has the parameters of an acceleration already' in done.error
    done = convert(tmp_path / 'b.pth', tmp_path / 'c.pth', '--to', 'authors')
    assert "left out: acceleration, which the authors' models do not have" in done.stdout
    assert read_checkpoint(tmp_path / 'c.pth').keys() == authors_state('b2_pixel_cls').keys()
    assert convert(src, tmp_path / 'd.pth', '--window-size', 8).error == '2'  # of no acceleration
