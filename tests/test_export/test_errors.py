"""What cannot be exported is said in terms of the model."""

import pytest
import torch
from torch import nn

from itpn_mm.export import ExportPart, export_model, files, onnx_file
from itpn_mm.export.onnx_file import save_onnx
from itpn_mm.export.program import trace
from itpn_mm.necks import TransformerPyramidNeck

from ..test_acceleration.models import plain


class Model(nn.Module):
    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck


def test_backbone_of_others():
    with pytest.raises(ValueError, match=r'must be an itpn_mm\.HiViT or .*, but it is Conv2d'):
        ExportPart(Model(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match='but it is none'):
        ExportPart(nn.Identity())


@pytest.mark.parametrize('part', ['classifier', 'features'])
def test_part_that_is_not_there(part):
    with pytest.raises(ValueError, match=rf"`part='{part}'` is of .* it has \['backbone'\]"):
        ExportPart(Model(plain()), part)
    with pytest.raises(ValueError, match=r"`part` must be one of .*, but got 'head'"):
        ExportPart(Model(plain()), 'head')


def test_part_is_all_that_can_be():
    neck = TransformerPyramidNeck((4, 8, 16), 8, in_strides=(1, 2, 4), out_strides=(1, 4))
    assert ExportPart(Model(plain())).output_names == ('c1', 'c2', 'c4')
    assert ExportPart(Model(plain(), neck)).output_names == ('p1', 'p4')
    assert ExportPart(Model(plain(), neck), 'backbone').part == 'backbone'


def test_image_too_small_for_a_level(tmp_path):
    neck = TransformerPyramidNeck((4, 8, 16), 8, in_strides=(1, 2, 4), out_strides=(4, 8, 16, 32))
    model = Model(plain(), neck)
    with pytest.raises(ValueError, match='at least 32 pixels for the level p32, but got 16 x 64'):
        export_model(model, tmp_path / 'model.onnx', (16, 64))


@pytest.mark.parametrize('package', ['onnx', 'onnxruntime'])
def test_missing_package(package, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, 'find_spec', lambda name: None if name == package else 1)
    with pytest.raises(ModuleNotFoundError, match=f'^{package} is not installed; for ONNX: pip'):
        if package == 'onnx':
            export_model(Model(plain()), tmp_path / 'model.onnx')
        else:
            files.open_file(tmp_path / 'model.onnx')


def test_operator_that_is_not_known(tmp_path):
    pytest.importorskip('onnx')
    program = trace(nn.Conv2d(3, 4, 3).eval(), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r'operator aten\.conv2d\.default .* take the suffix .pt2'):
        save_onnx(program, tmp_path / 'model.onnx', ['y'])


def test_more_weights_than_a_file_can_hold(tmp_path, monkeypatch):
    pytest.importorskip('onnx')
    monkeypatch.setattr(onnx_file, 'MAX_BYTES', 2**24)
    program = trace(nn.Linear(8, 8).eval(), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match='GiB of weights do not fit into an ONNX file'):
        save_onnx(program, tmp_path / 'model.onnx', ['y'])


def test_training_mode_and_single_images():
    with pytest.raises(ValueError, match='`model` is in training mode'):
        trace(nn.Identity().train(), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r'B of at least 2, but got \(1, 3, 8, 8\)'):
        trace(nn.Identity().eval(), torch.rand(1, 3, 8, 8))
