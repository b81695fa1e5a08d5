"""tools/export_model.py: whole classifiers, maps of a detector, and what it says of mistakes."""

import re
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

from itpn_mm.registry import MODELS

from ..tiny_configs import ROOT, parse, plain_text, shrink

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('mmpretrain')

sys.path.append(str(ROOT / 'tools'))
import export_model  # noqa: E402

CLASSIFIER = 'classification/fastitpn-base-p16_itpn-clip-l-1600e-pre_32xb32-amp-coslr-20e_in1k'
DETECTOR = (
    'detection/mask-rcnn_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-ms-crop-1x-gathering-hrpe_coco'
)


def write_config(name: str, folder) -> str:
    """A shipped config, shrunk."""
    cfg = shrink(parse(ROOT / f'configs/{name}.py').copy(), name.split('/')[1], folder)
    path = folder / 'config.py'
    with plain_text():
        cfg.dump(path)
    return str(path)


@pytest.fixture(scope='module')
def classifier(tmp_path_factory) -> tuple[str, torch.nn.Module, str]:
    """A config of a classifier, its model and a checkpoint of it."""
    folder = tmp_path_factory.mktemp('classifier')
    config = write_config(CLASSIFIER, folder)
    cfg = export_model.read_config([config])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).eval()
    for parameter in model.head.parameters():  # they start at almost nothing
        torch.nn.init.normal_(parameter)
    torch.save(dict(state_dict=model.state_dict()), folder / 'trained.pth')
    return config, model, str(folder / 'trained.pth')


def open_session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


@pytest.mark.checklist('export-onnx')
def test_classifier_end_to_end(classifier, tmp_path, capsys, record_figure):
    """Pictures as they are give the probabilities that the classifier itself predicts."""
    config, model, checkpoint = classifier
    path = tmp_path / 'model.onnx'
    assert export_model.main([config, checkpoint, str(path), '--size', '64']) == 0
    said = capsys.readouterr().out
    assert (
        'classifier, ONNX opset 17' in said and 'RGB' in said and 'weights are random' not in said
    )
    assert '-> logits (batch, 1000)' in said and 'largest difference' in said

    images = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    data = model.data_preprocessor(dict(inputs=[torch.from_numpy(x[::-1].copy()) for x in images]))
    with torch.no_grad():
        expected = model(data['inputs'], mode='tensor')
    [logits] = open_session(path).run(None, {'images': images.astype(np.float32)})
    difference = np.abs(logits - expected.numpy()).max()
    assert difference <= 1e-4 and expected.abs().max() > 1
    record_figure('classifier of a shipped config, logits', float(difference), limit='<= 1e-4')


@pytest.mark.checklist('export-torch')
def test_classifier_as_a_program(classifier, tmp_path, capsys):
    config, _, checkpoint = classifier
    path = tmp_path / 'new' / 'model.pt2'
    assert export_model.main([config, checkpoint, str(path), '--size', '64x48']) == 0
    said = capsys.readouterr().out
    assert 'torch.export' in said and '(batch, 3, 64, 48)' in said
    [logits] = torch.export.load(str(path)).module()(torch.rand(5, 3, 64, 48))
    assert logits.shape == (5, 1000)


@pytest.mark.slow
@pytest.mark.checklist('export-onnx')
def test_maps_of_a_detector(tmp_path, capsys):
    pytest.importorskip('mmdet')
    config, path = write_config(DETECTOR, tmp_path), tmp_path / 'model.onnx'
    assert export_model.main([config, str(path), '--size', '128x192']) == 0
    said = capsys.readouterr().out
    assert 'the weights are random' in said and 'features, ONNX' in said
    shapes = {
        name: (height, width)
        for name, height, width in re.findall(r'-> (p\d+) \(batch, \d+, (\d+), (\d+)\)', said)
    }
    assert shapes == {f'p{s}': (str(128 // s), str(192 // s)) for s in (4, 8, 16, 32, 64)}


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['model.onx'], r"must end in one of \('.onnx', '.pt2'\), but got 'model.onx'"),
        (['model.onnx', '--size', '100'], '`size` must be multiples of 16 pixels.*100 x 100'),
        (['model.onnx', '--part', 'features'], 'TransformerPyramidNeck, but .*ImageClassifier'),
        (['missing.pth', 'model.onnx'], 'missing.pth'),
    ],
)
def test_mistakes_are_told_in_one_line(classifier, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        export_model.main([classifier[0], *arguments])
    message = str(error.value)
    assert re.search(said, message) and '\n' not in message
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_is_none(capsys):
    with pytest.raises(SystemExit):
        export_model.main(['config.py', 'model.onnx', '--size', '64x'])
    assert "must be HEIGHTxWIDTH or one number, but got '64x'" in capsys.readouterr().err
