"""Teachers from `transformers` folders and ONNX files made here."""

import copy
import pickle
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmpretrain')

import torch.nn.functional as F

from itpn_mm.pretraining import FeatureTeacher

SIZE, PATCH, WIDTH = 64, 16, 8


def images(size=SIZE):
    return torch.randn(2, 3, size, size)


def save_onnx(path, batch='batch', size=SIZE):
    """A patch embedding (`map`), with its mean in front (`tokens`), and their mean (`pooled`)."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.randn(WIDTH, 3, PATCH, PATCH)
    nodes = [
        helper.make_node('Conv', ['images', 'weight'], ['map'], strides=[PATCH, PATCH]),
        helper.make_node('Reshape', ['map', 'shape'], ['flat']),
        helper.make_node('Transpose', ['flat'], ['patches'], perm=[0, 2, 1]),
        helper.make_node('ReduceMean', ['patches'], ['cls'], axes=[1], keepdims=1),
        helper.make_node('Concat', ['cls', 'patches'], ['tokens'], axis=1),
        helper.make_node('ReduceMean', ['tokens'], ['pooled'], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        'encoder',
        [helper.make_tensor_value_info('images', TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info('pooled', TensorProto.FLOAT, [batch, WIDTH])],
        [
            numpy_helper.from_array(weight.numpy(), 'weight'),
            numpy_helper.from_array(np.array([0, WIDTH, -1]), 'shape'),
        ],
    )
    opset = [helper.make_opsetid('', 14)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return weight


@pytest.mark.parametrize('batch', ['batch', 1])
@pytest.mark.parametrize('output', ['tokens', 'map'])
def test_tensor_within_an_onnx_graph(tmp_path, batch, output):
    weight = save_onnx(tmp_path / 'encoder.onnx', batch)
    teacher = FeatureTeacher(str(tmp_path / 'encoder.onnx'), img_size=SIZE, output=output)
    assert (teacher.grid, teacher.patch_size, teacher.embed_dims) == ((4, 4), PATCH, WIDTH)
    x = images()
    patches = F.conv2d(x, weight, stride=PATCH).flatten(2).transpose(1, 2)
    expected = F.layer_norm(patches, (WIDTH,))
    for twin in (teacher, copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        torch.testing.assert_close(twin(x), expected, atol=1e-4, rtol=1e-4)
        assert twin.fingerprint() == teacher.fingerprint()
    assert not teacher.state_dict()


def test_onnx_fingerprint(tmp_path):
    prints = set()
    for name in 'ab':
        save_onnx(tmp_path / f'{name}.onnx')
        for output in ('tokens', 'patches'):
            teacher = FeatureTeacher(str(tmp_path / f'{name}.onnx'), SIZE, output)
            prints.add(teacher.fingerprint())
    assert len(prints) == 4


def test_onnx_files_that_do_not_fit(tmp_path):
    save_onnx(tmp_path / 'encoder.onnx')
    source = str(tmp_path / 'encoder.onnx')
    for kwargs, message in (
        (dict(img_size=SIZE), r'must give tokens of several channels, .* but gives \(1, 8\)'),
        (dict(img_size=SIZE, output='token'), r"no tensor 'token' .* near ones are \['tokens'"),
        (
            dict(img_size=96, output='tokens'),
            'takes images of 64 pixels, .* is 96: set img_size=64',
        ),
        (dict(img_size=SIZE, output='tokens', patch_size=8), 'gives 17 tokens .* than the 8 x 8'),
        (dict(img_size=SIZE, patch_size=15), 'multiple of its patches of 15 pixels, but got 64: u'),
    ):
        with pytest.raises(ValueError, match=message) as info:
            FeatureTeacher(source, **kwargs)
        assert '\n' not in str(info.value)
    save_onnx(tmp_path / 'four.onnx', batch=4)
    with pytest.raises(ValueError, match=r'takes 4 images at a time'):
        FeatureTeacher(str(tmp_path / 'four.onnx'), SIZE, 'tokens')
    (tmp_path / 'no.onnx').write_bytes(b'no graph')
    with pytest.raises(ValueError, match=r'ONNX Runtime does not read it'):
        FeatureTeacher(str(tmp_path / 'no.onnx'))


def transformers_model(name, **kwargs):
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{name}Config')(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIZE,
        patch_size=PATCH,
        **kwargs,
    )
    return getattr(transformers, f'{name}Model')(config).eval()


@pytest.mark.parametrize('size', [64, 96])
@pytest.mark.parametrize(
    'name, prefix', [('Dinov2', 1), ('Dinov2WithRegisters', 5), ('ViT', 1), ('SiglipVision', 0)]
)
def test_folder_of_transformers(tmp_path, name, prefix, size):
    model = transformers_model(name)
    model.save_pretrained(tmp_path)
    teacher = FeatureTeacher(str(tmp_path), img_size=size)
    side = size // PATCH
    assert (teacher.grid, teacher.embed_dims) == ((side, side), WIDTH)
    x = images(size)
    resize = {} if name.startswith('Dinov2') or size == 64 else dict(interpolate_pos_encoding=True)
    with torch.no_grad():
        tokens = model(pixel_values=x, **resize).last_hidden_state[:, prefix:]
    assert tokens.shape[1] == side**2
    expected = F.layer_norm(tokens, (WIDTH,))
    torch.testing.assert_close(teacher(x), expected, atol=1e-5, rtol=1e-5)
    assert not teacher.state_dict() and not list(teacher.parameters())


def test_half_precision_weights_are_read_as_float32(tmp_path):
    transformers_model('Dinov2').half().save_pretrained(tmp_path)
    teacher = FeatureTeacher(str(tmp_path), img_size=SIZE)
    assert {p.dtype for p in teacher.encoder.parameters()} == {torch.float32}


def test_folders_that_do_not_fit(tmp_path):
    transformers = pytest.importorskip('transformers')
    with pytest.raises(ValueError, match='`transformers` does not read this folder') as info:
        FeatureTeacher(str(tmp_path))
    assert '\n' not in str(info.value)
    with pytest.raises(ValueError, match=r"names a tensor of an ONNX file.* leave out output='x'"):
        FeatureTeacher(str(tmp_path), output='x')
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='BertModel is no model for images'):
        FeatureTeacher(str(tmp_path))


def test_missing_source_and_missing_packages(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="`source` of FeatureTeacher is 'no/such'"):
        FeatureTeacher('no/such')
    save_onnx(tmp_path / 'encoder.onnx')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ImportError, match=r"`transformers`.*pip install 'itpn_mm\[teachers\]'"):
        FeatureTeacher(str(tmp_path))
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(
        ImportError, match=r"`output='tokens'`, which is no output of .* needs `onnx`"
    ):
        FeatureTeacher(str(tmp_path / 'encoder.onnx'), SIZE, 'tokens')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'an ONNX file .* needs `onnxruntime`'):
        FeatureTeacher(str(tmp_path / 'encoder.onnx'), SIZE)
