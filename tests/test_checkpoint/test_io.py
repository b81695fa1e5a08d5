import argparse
import logging
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from safetensors.torch import save_file

from itpn_mm.checkpoint import LoadReport, load_pretrained, read_checkpoint
from itpn_mm.checkpoint.io import _INERT, _Inert

from .models import backbone, save_authors

STATE = {'a.weight': torch.arange(6.0).view(2, 3), 'b': torch.ones(2000, dtype=torch.half)}


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def assert_state(state):
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype


def write(path, value, legacy=False):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('container', [None, 'state_dict', 'model', 'module'])
def test_containers(tmp_path, container, legacy):
    value = STATE if container is None else {container: OrderedDict(STATE), 'epoch': 3}
    assert_state(read_checkpoint(write(tmp_path / 'a.pth', value, legacy)))


@pytest.mark.checklist('safe-loading')
def test_safetensors_by_suffix_or_content(tmp_path):
    for name in ('a.safetensors', 'a.bin'):
        save_file(STATE, tmp_path / name)
        assert_state(read_checkpoint(tmp_path / name))


def test_float32(tmp_path):
    path = write(tmp_path / 'a.pth', {**STATE, 'step': torch.tensor(3)})
    state = read_checkpoint(str(path), float32=True)
    assert state['b'].dtype == torch.float32 and state['step'].dtype == torch.int64


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path / 'a.pth', STATE)
    assert_state(read_checkpoint('~/a.pth'))


def test_authors_files_hold_their_command_line(tmp_path):
    assert_state(read_checkpoint(save_authors(tmp_path / 'a.pth', STATE)))


@pytest.mark.parametrize('legacy', [False, True])
def test_mmengine_checkpoint(tmp_path, legacy):
    """What a Runner saves beside the weights: message hub, optimizer, meta."""
    hub = MessageHub('test_mmengine_checkpoint')
    hub.update_scalar('train/loss', 0.5)
    hub.update_info_dict(
        dict(epoch=1, scalar=np.float32(3), array=np.zeros((2, 2)), ids=np.int64(3))
    )
    assert isinstance(hub.log_scalars['train/loss'], HistoryBuffer)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    checkpoint = dict(
        meta=dict(cfg='model = 1', dataset_meta=dict(classes=('a',), palette=[(1, 2, 3)])),
        state_dict=STATE,
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(last_step=3)],
    )
    assert_state(read_checkpoint(write(tmp_path / 'a.pth', checkpoint, legacy)))


@pytest.mark.checklist('safe-loading')
def test_allowing_names_does_not_outlive_the_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(save_authors(tmp_path / 'a.pth', STATE))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match=r'[Ww]eights'):
        torch.load(tmp_path / 'a.pth', weights_only=True)


@pytest.mark.checklist('safe-loading')
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('inside', [False, True])
def test_malicious_pickle_does_not_run(tmp_path, legacy, inside):
    trap = tmp_path / 'trap'
    state = {**STATE, 'c': Malicious(trap)} if inside else STATE
    path = write(tmp_path / 'a.pth', dict(model=state, args=Malicious(trap)), legacy)
    message = r'a\.pth: holds more than weights: it asks for `posix\.mkdir`, .* --trust'
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)
    assert not trap.exists()


@pytest.mark.checklist('safe-loading')
def test_objects_beside_the_weights_are_empty(tmp_path):
    """Names that the files of mmengine and the authors need do not reach the real `getattr`."""

    class Getter:
        def __reduce__(self):
            return getattr, (argparse.Namespace(lr=1), 'lr')

    path = write(tmp_path / 'a.pth', dict(model=STATE, args=Getter()))
    assert_state(read_checkpoint(path))
    with torch.serialization.safe_globals(_INERT):
        value = torch.load(path, weights_only=True)['args']
    assert isinstance(value, _Inert) and not vars(value)


@pytest.mark.checklist('safe-loading')
def test_trusted_runs_and_says_so(tmp_path, monkeypatch):
    trap = tmp_path / 'trap'
    path = write(tmp_path / 'a.pth', dict(model=STATE, args=Malicious(trap)))
    messages = []
    monkeypatch.setattr('itpn_mm.checkpoint.io.print_log', lambda *args: messages.append(args))
    assert_state(read_checkpoint(path, trust=True))
    assert trap.exists()
    assert messages[0][2] == logging.WARNING and 'TRUSTED' in messages[0][0]


@pytest.mark.checklist('damaged-files')
@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_truncated(tmp_path, kind, share):
    path = tmp_path / ('a.safetensors' if kind == 'safetensors' else 'a.pth')
    if kind == 'safetensors':
        save_file(STATE, path)
    else:
        write(path, STATE, legacy=kind == 'legacy')
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    cause = {
        'zip': 'the file is truncated; fetch it again',
        'legacy': 'damaged, truncated or not a checkpoint',
        'safetensors': 'not a whole safetensors file',
    }[kind]
    cause = cause if share else 'the file is empty'
    with pytest.raises(ValueError, match=f'{path.name}: {cause}') as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value)


@pytest.mark.checklist('damaged-files')
def test_damaged_archive(tmp_path):
    """A flipped bit anywhere: torch, which maps the file, would hand out the wrong weights."""
    state = {f'{i}.weight': torch.randn(500) for i in range(3)}
    data = write(tmp_path / 'a.pth', dict(model=state)).read_bytes()
    tensor = data.find(state['1.weight'].numpy().tobytes())
    places = {
        'pickle': data.find(b'PK') + 64,
        'tensor': tensor + 700,
        'directory': data.rfind(b'PK\x01\x02') + 20,
    }
    for i, (name, place) in enumerate(places.items()):
        assert 0 < place < len(data)
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        (path := tmp_path / f'{i}.pth').write_bytes(damaged)
        with pytest.raises(ValueError, match=rf'{i}\.pth: .*(damaged|truncated)') as error:
            read_checkpoint(path)
        assert '\n' not in str(error.value), name


def test_moving_average(tmp_path, monkeypatch):
    """Of the model by default; the copy is mentioned, and taken when asked for."""
    messages = []
    monkeypatch.setattr('itpn_mm.checkpoint.io.print_log', lambda *args: messages.append(args[0]))
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    path = write(tmp_path / 'a.pth', dict(model=STATE, model_ema=average))
    assert_state(read_checkpoint(path))
    assert 'the weights are those of `model`; it also holds a moving average' in messages[0]
    found = read_checkpoint(path, ema=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in average.items())
    with pytest.raises(ValueError, match=r'b\.pth: holds no moving average of the weights'):
        read_checkpoint(write(tmp_path / 'b.pth', dict(model=STATE)), ema=True)


@pytest.mark.checklist('damaged-files')
def test_nine_kinds_of_damage_have_nine_causes(tmp_path, record_figure):
    """Each in one line that begins with the file."""
    whole = write(tmp_path / 'whole.pth', STATE).read_bytes()
    save_file(STATE, tmp_path / 'whole.safetensors')
    safe = (tmp_path / 'whole.safetensors').read_bytes()
    flipped = bytearray(whole)
    flipped[whole.find(STATE['b'].numpy().tobytes()) + 5] ^= 1
    pickled = pickle.dumps({'weights': [1.0, 2.0]})
    cases = {
        'empty.pth': (b'', 'the file is empty'),
        'page.pth': (b'<!DOCTYPE html><html>Sign in</html>', 'is a web page'),
        'pointer.pth': (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
        'cut.pth': (whole[: len(whole) // 2], 'the file is truncated'),
        'flipped.pth': (bytes(flipped), 'the file is damaged'),
        'cut.safetensors': (safe[:-100], 'not a whole safetensors file'),
        'pickle.pth': (pickled, 'a bare pickle'),
        'text.pth': (b'learning rate: 0.1', 'damaged, truncated or not a checkpoint'),
    }
    causes = []
    for name, (content, cause) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_checkpoint(tmp_path / name)
        message = str(error.value)
        assert message.startswith(f'{tmp_path / name}: ') and cause in message
        assert '\n' not in message
        causes.append(message.split(': ', 1)[1])
    write(tmp_path / 'resnet.pth', {'conv1.weight': torch.zeros(3)})
    with pytest.raises(ValueError, match=r'resnet\.pth: no tensor fits HiViT') as error:
        load_pretrained(backbone(), str(tmp_path / 'resnet.pth'))
    causes.append(str(error.value))
    assert len(set(causes)) == 9
    record_figure('kinds of damage, each with its cause', len(set(causes)), '9')


@pytest.mark.checklist('damaged-files')
@pytest.mark.parametrize(
    'content, cause',
    [
        (b'\n<!DOCTYPE html><html>Sign in</html>', 'is a web page, not weights'),
        (b'<html><body>Quota exceeded</body></html>', 'is a web page, not weights'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'is a Git LFS pointer'),
        (b'just some text', 'damaged, truncated or not a checkpoint'),
    ],
)
def test_not_a_checkpoint(tmp_path, content, cause):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf'a\.pth: .*{cause}'):
        read_checkpoint(path)


def test_not_a_file(tmp_path):
    with pytest.raises(ValueError, match='is a directory'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'none\.pth: no such checkpoint'):
        read_checkpoint(tmp_path / 'none.pth')
    for value in (None, '', 3):
        with pytest.raises(ValueError, match='`checkpoint` must be the path of a file'):
            read_checkpoint(value)
    for url in ('https://example.org/a.pth', 'torchvision://resnet50'):
        with pytest.raises(ValueError, match=f'{url}: only local files are read; download it'):
            read_checkpoint(url)


@pytest.mark.parametrize(
    'value, cause',
    [
        ([1, 2], 'holds a list instead of a dict of tensors'),
        ({'epoch': 3, 'note': 'a'}, 'no state dict found .* it has the keys epoch, note'),
        ({'model': {}}, r'no state dict found .* \(none\)'),
    ],
)
def test_no_state_dict(tmp_path, value, cause):
    with pytest.raises(ValueError, match=cause):
        read_checkpoint(write(tmp_path / 'a.pth', value))


def test_other_values_are_left_out_with_a_warning(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr('itpn_mm.checkpoint.io.print_log', lambda *args: messages.append(args[0]))
    assert_state(read_checkpoint(write(tmp_path / 'a.pth', {**STATE, 'epoch': 3})))
    assert messages == [f'{tmp_path}/a.pth: left out what is no tensor: epoch']


def test_report_is_one_readable_block():
    report = LoadReport(
        'HiViT',
        'a.pth',
        loaded=[f'stages.0.{i}' for i in range(9)] + ['pos_embed'],
        resized={'pos_embed': ((1, 4, 8), (1, 9, 8))},
        missing=[f'rel_pos.{i}' for i in range(6)],
        ignored={'head.weight': 'part `head` of the file', 'head.bias': 'part `head` of the file'},
        copied={'rel_pos.table': 24},
        loaded_share=0.995,
    )
    assert str(report).splitlines() == [
        'HiViT loaded from a.pth',
        '  loaded:     10 tensors, 99.50% of the values',
        '  resized:    1: pos_embed (1, 4, 8) -> (1, 9, 8)',
        '  missing:    6 (keep their initial values): rel_pos.0, rel_pos.1, rel_pos.2, rel_pos.3, '
        '... (6 in all)',
        '  unexpected: 0',
        '  ignored:    2 on purpose',
        '    part `head` of the file: head.weight, head.bias',
        '  copied:     rel_pos.table to 24 blocks',
    ]
