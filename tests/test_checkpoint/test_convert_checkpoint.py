import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from itpn_mm.checkpoint import read_checkpoint, remap

from .models import authors_state, save_authors

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the tool; gives what it printed, and the message if it refused."""

    def run(*args) -> SimpleNamespace:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        error = None
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            error = str(end.code)
        return SimpleNamespace(stdout=capsys.readouterr().out, error=error)

    return run


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
