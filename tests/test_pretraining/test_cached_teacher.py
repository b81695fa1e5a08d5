"""Features on disk: paid for once, never those of another view or teacher."""

import json
import threading

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.pretraining import CachedTeacher
from itpn_mm.pretraining import cached_teacher as module

from .clip_files import OUT, save_openai

SIZE = 32


@pytest.fixture
def file(tmp_path):
    save_openai(tmp_path / 'clip.pt', grid=2)
    return str(tmp_path / 'clip.pt')


def build(file, cache_dir, **kwargs):
    """The teacher, and the number of images of each call of the inner one."""
    inner = dict(type='itpn_mm.CLIPTeacher', checkpoint=file, img_size=SIZE)
    teacher = CachedTeacher({**inner, **kwargs.pop('inner', {})}, str(cache_dir), **kwargs)
    calls = []
    teacher.teacher.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    return teacher, calls


def features(folder):
    return sorted(folder.glob('*/*.safetensors'))


@pytest.mark.parametrize('half', [False, True])
def test_second_pass_is_bit_equal_and_asks_nobody(file, tmp_path, half):
    teacher, calls = build(file, tmp_path / 'cache', half=half)
    x = torch.randn(3, 3, SIZE, SIZE)
    first = teacher(x)
    assert (first.shape, first.dtype) == ((3, 4, OUT), torch.float32)
    assert (teacher.grid, teacher.embed_dims, teacher.img_size, teacher.patch_size) == (
        (2, 2),
        OUT,
        SIZE,
        16,
    )
    assert torch.equal(teacher(x), first) and calls == [3]
    direct = teacher.teacher(x)
    assert torch.equal(first, direct.half().float() if half else direct)

    other, calls = build(file, tmp_path / 'cache', half=half)  # another run
    assert torch.equal(other(x.flip(0)), first.flip(0)) and calls == []
    more = torch.cat([x[:1], torch.randn(1, 3, SIZE, SIZE)])
    assert torch.equal(other(more)[0], first[0]) and calls == [1]
    assert len(features(tmp_path / 'cache')) == 4
    assert not list((tmp_path / 'cache').rglob('*.tmp'))
    assert not teacher.state_dict() and not list(teacher.parameters())


def test_one_bit_makes_another_view(file, tmp_path):
    teacher, calls = build(file, tmp_path / 'cache')
    x = torch.randn(1, 3, SIZE, SIZE)
    teacher(x)
    changed = x.clone()
    changed[0, 2, 31, 31] = torch.nextafter(changed[0, 2, 31, 31], torch.tensor(9.0))
    teacher(changed)
    teacher.double()(x.double())
    assert calls == [1, 1, 1]


def test_it_stops_at_max_images_with_one_warning(file, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(module, 'print_log', lambda text, *_: warnings.append(text))
    cache = tmp_path / 'cache'
    teacher, calls = build(file, cache, max_images=2)
    x = torch.randn(5, 3, SIZE, SIZE)
    first = teacher(x)
    torch.testing.assert_close(teacher(x), first)
    assert calls[:2] == [5, 3]
    assert len(features(cache)) == 2
    assert len(warnings) == 1 and '`max_images` of CachedTeacher is reached' in warnings[0]

    build(file, cache, max_images=3)[0](x)  # one is left
    assert len(features(cache)) == 3
    monkeypatch.setattr(module, 'get_world_size', lambda: 4)
    build(file, cache, max_images=8)[0](x)  # five are left, for four processes
    assert len(features(cache)) == 4


def test_it_refuses_the_folder_of_another_teacher(file, tmp_path):
    cache = tmp_path / 'cache'
    build(file, cache)
    build(file, cache)
    for kwargs in (
        dict(half=True),
        dict(inner=dict(img_size=48)),
        dict(inner=dict(activation='gelu')),
    ):
        with pytest.raises(
            ValueError, match=r'holds features of another teacher, image size or prec'
        ):
            build(file, cache, **kwargs)
    (cache / 'teacher.json').write_text('{')
    with pytest.raises(ValueError, match=r'holds features of another teacher'):
        build(file, cache)
    with pytest.raises(ValueError, match=r'holds other files: give an empty or a new folder'):
        build(file, tmp_path)
    with pytest.raises(ValueError, match='`max_images` of CachedTeacher must be at least 1'):
        build(file, cache, max_images=0)


def test_damaged_features_are_made_again(file, tmp_path):
    teacher, calls = build(file, tmp_path / 'cache')
    x = torch.randn(1, 3, SIZE, SIZE)
    first = teacher(x)
    [found] = features(tmp_path / 'cache')
    for data in (b'', found.read_bytes()[:-5]):
        found.write_bytes(data)
        assert torch.equal(teacher(x), first)
    assert torch.equal(teacher(x), first) and calls == [1, 1, 1]


def test_an_interrupted_write_leaves_nothing(file, tmp_path, monkeypatch):
    teacher, _ = build(file, tmp_path / 'cache')

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, 'replace', fail)
    with pytest.raises(KeyboardInterrupt):
        teacher(torch.randn(1, 3, SIZE, SIZE))
    assert not features(tmp_path / 'cache') and not list((tmp_path / 'cache').rglob('*.tmp'))


def test_several_writers(file, tmp_path):
    x, found = torch.randn(4, 3, SIZE, SIZE), {}
    teachers = [build(file, tmp_path / 'cache')[0] for _ in range(3)]

    def work(index):
        found[index] = [teachers[index](x[i : i + 1]) for i in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [teachers[0](x[i : i + 1]) for i in range(4)]
    assert all(torch.equal(a, b) for row in found.values() for a, b in zip(row, expected))
    assert len(features(tmp_path / 'cache')) == 4
    assert set(json.loads((tmp_path / 'cache' / 'teacher.json').read_text())) == {
        'teacher',
        'dtype',
    }
