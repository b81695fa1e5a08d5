"""A wrapped backbone trains and predicts in a model of every host."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper

from tests.test_engine.models import (
    backbone_cfg,
    classifier,
    detector,
    detector_cfg,
    fast_backbone_cfg,
    neck_cfg,
    rotated_cfg,
    rotated_detector,
    segmentor,
)

OPTIONS = dict(
    ratio=0.3,
    schedule=dict(every=4),
    window_size=3,
    window_attention=True,
    global_layers=(11,),
    gathering=True,
    rel_pos_bias='window',
)


def wrapped(backbone: dict) -> dict:
    return dict(type='itpn_mm.TokenMigration', backbone=backbone, **OPTIONS)


def check(model, data: dict) -> None:
    """One training step of every parameter of the backbone, and a prediction."""
    before = {k: p.clone() for k, p in model.backbone.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = model.train_step(data, OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0)))
    assert losses['loss'].isfinite()
    still = [k for k, p in model.backbone.named_parameters() if torch.equal(p, before[k])]
    # Scales of 0 hide the gathering tokens for the first step; positions have no weight decay.
    assert set(still) <= {'acceleration.gathering_token'}
    assert any(key.startswith('acceleration.scales') for key in before)
    predictions = model.eval().test_step(data)
    assert len(predictions) == 2


def test_mmpretrain():
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    model = classifier(wrapped(backbone_cfg(out_indices=(2,))))
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    check(model, dict(inputs=torch.randn(2, 3, 80, 112), data_samples=samples))


def test_mmdet():
    pytest.importorskip('mmdet')
    from mmdet.testing import demo_mm_inputs

    cfg = detector_cfg()
    cfg.test_cfg.rcnn.score_thr = 0.0
    model = detector(wrapped(fast_backbone_cfg()), neck_cfg(), cfg)
    shapes = [(3, 128, 160), (3, 100, 128)]
    data = demo_mm_inputs(2, image_shapes=shapes, num_items=[2, 3], with_mask=True)
    check(model, data)


def test_mmseg():
    pytest.importorskip('mmseg')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    neck = neck_cfg(out_strides=(4, 8, 16, 32))
    model = segmentor(wrapped(backbone_cfg()), neck)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 3, (1, 96, 128)))
        samples.append(sample)
    model.test_cfg = ConfigDict(mode='whole')
    check(model, dict(inputs=torch.randn(2, 3, 96, 128), data_samples=samples))


def test_mmrotate():
    pytest.importorskip('mmrotate')
    from mmrotate.testing import demo_mm_inputs

    model = rotated_detector(wrapped(fast_backbone_cfg()), neck_cfg(), rotated_cfg())
    shapes = [(3, 128, 128), (3, 128, 96)]
    data = demo_mm_inputs(2, image_shapes=shapes, num_items=[2, 3], use_box_type=True)
    check(model, data)
