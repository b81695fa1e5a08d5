"""Models of full size with random weights. Minutes."""

import sys

import pytest
import torch

from ..tiny_configs import ROOT

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')

sys.path.append(str(ROOT / 'tools'))
from export_model import build_model

from itpn_mm.export import export_model

CLASSIFIER = 'classification/fastitpn-base-p16_itpn-clip-l-1600e-pre_32xb32-amp-coslr-20e_in1k'
DETECTION = 'detection/mask-rcnn_fastitpn-base-itpn-clip-l_tpn_32xb2-amp-ms-crop-1x'
CASES = [
    (CLASSIFIER, (224, 224)),
    ('detection/mask-rcnn_hivit-base-itpn-pixel_tpn_32xb2-amp-ms-crop-1x_coco', (224, 224)),
    (f'{DETECTION}-migration-20_coco', (512, 512)),
    (f'{DETECTION}-gathering-hrpe_coco', (512, 512)),
]


@pytest.mark.slow
@pytest.mark.checklist('export-onnx')
@pytest.mark.parametrize(('name', 'size'), CASES)
def test_full_size(name, size, tmp_path, record_figure):
    model = build_model(str(ROOT / f'configs/{name}.py'), None)
    with torch.no_grad():  # what starts at almost nothing would hide a difference
        for key, parameter in model.named_parameters():
            if key.startswith('head.') or 'acceleration.' in key or 'rel_pos' in key:
                parameter.normal_(0, 0.1)
    exported = export_model(model, tmp_path / 'model.onnx', size)
    differences = exported.compare((1, 3))
    what = f'{name.split("/")[1]} at {size[0]} x {size[1]}'
    record_figure(what, max(differences.values()), limit='<= 1e-4')
    record_figure(f'{what}, MB', round(exported.path.stat().st_size / 1e6, 1))
    assert max(differences.values()) <= 1e-4
