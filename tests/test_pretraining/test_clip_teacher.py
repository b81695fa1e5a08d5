"""The CLIP teacher: what it reads, what it refuses, and that it stays out of the model."""

import copy
import io
import os
import pickle
import zipfile

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.model import BaseModule
from torch import nn

from itpn_mm.checkpoint import read_checkpoint
from itpn_mm.pretraining import CLIPTeacher
from itpn_mm.pretraining.torchscript import read_torchscript

from .clip_files import OUT, openai_state, save_folder, save_openai, save_torchscript


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'clip.pt'
    save_openai(path, grid=4)
    return str(path)


def images(size=64):
    return torch.randn(2, 3, size, size)


def test_all_layouts_give_the_same(tmp_path, file):
    state = {name: tensor.half().float() for name, tensor in torch.load(file).items()}
    torch.save(dict(state_dict=state), tmp_path / 'container.pt')
    tower = {k.removeprefix('visual.'): v for k, v in state.items() if k.startswith('visual.')}
    torch.save(tower, tmp_path / 'tower.pt')
    save_torchscript(tmp_path / 'archive.pt', state)
    save_folder(tmp_path / 'folder', state)
    x, first = images(), None
    for name in ('container.pt', 'tower.pt', 'archive.pt', 'folder'):
        teacher = CLIPTeacher(str(tmp_path / name), img_size=64)
        found = teacher(x)
        assert found.shape == (2, 16, OUT) and found.dtype == torch.float32
        first = found if first is None else first
        assert torch.equal(found, first), name
    assert first.std() > 0.5
    zeros, ones = torch.zeros(2, 16), torch.ones(2, 16)
    torch.testing.assert_close(first.mean(-1), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(first.var(-1, unbiased=False), ones, atol=1e-3, rtol=0)


@pytest.mark.checklist('memory')
def test_half_precision_takes_half_the_memory(file, record_figure):
    whole, x = CLIPTeacher(file, img_size=64), images()
    half = CLIPTeacher(file, img_size=64, dtype='bfloat16')
    sizes = [sum(p.nbytes for p in t.encoder.parameters()) for t in (half, whole)]
    assert 2 * sizes[0] == sizes[1]
    targets = [teacher(x).flatten(0, 1) for teacher in (half, whole)]
    assert targets[0].dtype == torch.float32
    alike = torch.cosine_similarity(*targets, dim=1).min().item()
    record_figure('targets of a teacher in bfloat16: least cosine with float32', alike, '>= 0.999')
    assert alike >= 0.999
    assert half.fingerprint() != whole.fingerprint()
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.cosine_similarity(half(x), whole(x), dim=2).min() >= 0.999
    with pytest.raises(ValueError, match=r"`dtype` of CLIPTeacher must be .* but got 'float32'"):
        CLIPTeacher(file, img_size=64, dtype='float32')


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
def test_equal_to_transformers(tmp_path, activation):
    transformers = pytest.importorskip('transformers')
    save_folder(tmp_path / 'clip', openai_state(grid=4), hidden_act=activation)
    size = dict(image_size=64, patch_size=16, projection_dim=OUT)
    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path / 'clip', local_files_only=True, attn_implementation='eager', **size
    ).eval()
    x = images()
    with torch.no_grad():
        tokens = theirs.vision_model(x).last_hidden_state[:, 1:]
        tokens = theirs.visual_projection(theirs.vision_model.post_layernorm(tokens))
    expected = nn.functional.layer_norm(tokens, (OUT,))
    found = CLIPTeacher(str(tmp_path / 'clip'), img_size=64)(x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    other = {'gelu': 'quick_gelu', 'quick_gelu': 'gelu'}[activation]
    forced = CLIPTeacher(str(tmp_path / 'clip'), img_size=64, activation=other)(x)
    assert not torch.allclose(found, forced, atol=1e-3)


@pytest.mark.parametrize(
    'patch, img_size, grid',
    [(16, 224, (14, 14)), (14, 196, (14, 14)), (14, 224, (16, 16)), (16, 64, (4, 4))],
)
def test_sizes_of_the_released_models(tmp_path, patch, img_size, grid):
    save_openai(tmp_path / 'clip.pt', patch=patch, grid=16 if patch == 14 else 14)
    teacher = CLIPTeacher(str(tmp_path / 'clip.pt'), img_size=img_size)
    assert (teacher.grid, teacher.patch_size, teacher.embed_dims) == (grid, patch, OUT)
    assert teacher(images(img_size)).shape == (2, grid[0] * grid[1], OUT)


class Student(BaseModule):
    def __init__(self, teacher):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.teacher = teacher


def test_it_stays_out_of_the_model(file):
    model = Student(CLIPTeacher(file, img_size=64))
    tower = model.teacher.encoder
    before = copy.deepcopy(tower.state_dict())
    assert list(model.state_dict()) == ['linear.weight', 'linear.bias']
    assert len(list(model.parameters())) == 2 and not list(model.teacher.buffers())
    assert tower not in set(model.modules())
    model.init_weights()
    model.apply(lambda module: [p.data.zero_() for p in module.parameters(recurse=False)])
    model.train().requires_grad_(True)
    assert not any(module.training for module in tower.modules())
    assert not any(p.requires_grad for p in tower.parameters())
    assert all(torch.equal(before[k], v) for k, v in tower.state_dict().items())
    assert not model.teacher(images().requires_grad_()).requires_grad


def test_it_follows_the_model(file):
    model = Student(CLIPTeacher(file, img_size=64))
    x = images()
    expected = model.teacher(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.teacher(x), expected)
        assert twin.teacher.encoder is not model.teacher.encoder
    with torch.autocast('cpu', torch.bfloat16):
        lowered = model.teacher(x)
    assert lowered.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(lowered, expected, dim=-1).min() > 0.99
    model.double()
    assert {v.dtype for v in model.teacher.encoder.state_dict().values()} == {torch.float64}
    torch.testing.assert_close(model.teacher(x.double()).float(), expected, atol=1e-4, rtol=1e-4)
    model.bfloat16()
    assert model.teacher(x.bfloat16()).dtype == torch.float32
    assert next(model.to('meta').teacher.encoder.parameters()).is_meta


def test_fingerprint_tells_teachers_apart(file, tmp_path):
    first = CLIPTeacher(file, img_size=64)
    others = [CLIPTeacher(file, img_size=80), CLIPTeacher(file, img_size=64, activation='gelu')]
    changed = torch.load(file)
    changed['visual.ln_post.bias'][0] += 1
    torch.save(changed, tmp_path / 'changed.pt')
    others.append(CLIPTeacher(str(tmp_path / 'changed.pt'), img_size=64))
    prints = {teacher.fingerprint() for teacher in (first, *others)}
    assert len(prints) == 4
    assert CLIPTeacher(file, img_size=64).fingerprint() in prints


def test_missing_file_says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        CLIPTeacher('pretrained/clip_vit-base-p16.pt')
    message = str(info.value)
    assert "'pretrained/clip_vit-base-p16.pt', which does not exist: fetch OpenAI's" in message
    assert '\n' not in message
    for name, expected in (('config.json', 'no config.json'), ('model', "none of ('model.safe")):
        with pytest.raises(FileNotFoundError, match=expected.replace('(', r'\(')):
            CLIPTeacher(str(tmp_path))
        (tmp_path / name).write_text('{"num_attention_heads": 1}')


def test_sizes_that_do_not_fit(file):
    message = r'multiple of its patches of 16 pixels, but got 70: use 64 \(4 x 4 tokens\) or 80'
    with pytest.raises(ValueError, match=message):
        CLIPTeacher(file, img_size=70)
    with pytest.raises(ValueError, match=r'built for images \(B, 3, 64, 64\), but got \(2, 3, 80'):
        CLIPTeacher(file, img_size=64)(images(80))
    with pytest.raises(ValueError, match='must be a whole number'):
        CLIPTeacher(file, img_size='64')
    with pytest.raises(ValueError, match=r"`activation` of CLIPTeacher must be one of .*'relu'"):
        CLIPTeacher(file, activation='relu')


def without(key):
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    'change, message',
    [
        (without('visual.class_embedding'), 'not a CLIP model with a ViT'),
        (without('visual.ln_pre.bias'), 'the image tower is incomplete: .*pre_norm.bias'),
        (lambda s: s.update({'visual.layer1.0.conv1.weight': torch.ones(1)}), 'unknown names: vis'),
        (lambda s: s.update(openai_state(width=96)), 'width 96 .* no multiple of 64'),
        (lambda s: s.update({'visual.positional_embedding': torch.ones(16, 64)}), 'a square grid'),
    ],
)
def test_files_that_are_no_clip_tower(file, change, message):
    state = torch.load(file)
    change(state)
    torch.save(state, file)
    with pytest.raises(ValueError, match=message) as info:
        CLIPTeacher(file, img_size=64)
    assert '\n' not in str(info.value)


def test_folders_that_are_no_clip_tower(tmp_path):
    save_folder(tmp_path / 'clip', openai_state(grid=4), hidden_act='relu')
    with pytest.raises(ValueError, match="its activation 'relu' is none of"):
        CLIPTeacher(str(tmp_path / 'clip'))
    (tmp_path / 'clip' / 'config.json').write_text('{"vision_config": {}}')
    with pytest.raises(ValueError, match=r'not the config of a CLIP model .*num_attention_heads'):
        CLIPTeacher(str(tmp_path / 'clip'))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ('executed',)


def rewrite(path, entries):
    """Replace or, for None, remove entries of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(old)).split('/')[0]
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in {**old, **{f'{folder}/{k}': v for k, v in entries.items()}}.items():
            if data is not None:
                archive.writestr(name, data)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'archive.pt'
    save_torchscript(path, openai_state(grid=4))
    return path


def test_no_program_of_an_archive_is_read(archive):
    expected = torch.jit.load(archive).state_dict()
    with zipfile.ZipFile(archive) as content:
        programs = [n for n in content.namelist() if '/code/' in n and n.endswith('.py')]
    assert programs
    rewrite(archive, {name.split('/', 1)[1]: b'import os' for name in programs})
    found = read_torchscript(archive)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    CLIPTeacher(str(archive), img_size=64)


def pickled(*calls):
    file = io.BytesIO()
    pickle.Pickler(file, protocol=2).dump(calls)
    return file.getvalue()


@pytest.mark.parametrize(
    'data, message',
    [
        (pickled(Hostile()), 'UnpicklingError: asks for `(posix|nt).mkdir`'),
        (pickled(torch.nn.Linear), 'asks for `torch.nn.modules.linear.Linear`'),
        (b'', 'EOFError'),
        (b'\x80\x02}q\x00', 'damaged or no TorchScript archive'),
        (None, 'damaged or no TorchScript archive'),
    ],
    ids=['call', 'class', 'empty', 'cut off', 'missing'],
)
def test_archives_that_are_refused(archive, data, message):
    rewrite(archive, {'data.pkl': data})
    with pytest.raises(ValueError, match=message) as info:
        CLIPTeacher(str(archive))
    assert '\n' not in str(info.value)
    assert not os.path.exists('executed')


def test_tensors_stay_within_their_storage(archive):
    rewrite(archive, {'data/0': b'\0' * 8})
    with pytest.raises(ValueError, match=r'damaged .* out of bounds'):
        read_torchscript(archive)


def test_plain_files_are_not_taken_for_archives(file):
    assert read_checkpoint(file).keys() == torch.load(file).keys()
