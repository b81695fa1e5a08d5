"""Released MaskDINO weights as `load_from` of a Runner, and to predict with."""

import logging
import re

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

pytest.importorskip('mmdet')

from itpn_mm.checkpoint.maskdino import from_maskdino
from itpn_mm.engine import load_trained
from itpn_mm.maskdino import MaskDINOBase

from ..test_checkpoint.test_maskdino import HIGH2LOW, LOW2HIGH, released
from .test_runner_load import load_into, log, make_runner  # noqa: F401 (a fixture)

SIZES = (0.4, 0.2, 0.1, 0.05)


class Model(BaseModel):
    """Names as mmdet's or mmseg's models have them, with parts that are not ours."""

    def __init__(self, part: str = 'panoptic_head', extra: int = 0, **options: object) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        head = MaskDINOBase(
            5 + extra,
            (24, 40, 56, 72),
            num_queries=10,
            feat_channels=64,
            out_channels=64,
            pixel_decoder=dict(
                num_levels=4, num_extra_levels=1, num_layers=1, feedforward_channels=64
            ),
            transformer_decoder=dict(num_layers=2, feedforward_channels=48),
            denoising=dict(num_queries=10),
            **options,
        )
        setattr(self, part, head)

    def forward(self, inputs: Tensor, data_samples=None, mode: str = 'tensor'):
        return {'loss': inputs.sum() * 0} if mode == 'loss' else [inputs]


NEEDED = dict(double_norm=True, mask_padding=False, proposal_sizes=SIZES)


@pytest.fixture
def path(tmp_path):
    """A file that holds the backbone of the model under a name of ours, which detectron2 lacks."""
    state = released(*LOW2HIGH)
    torch.save(dict(model=state), tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


@pytest.mark.parametrize('part', ['panoptic_head', 'decode_head'])
def test_training_starts_from_it(path, tmp_path, log, part):  # noqa: F811
    model = load_into(Model(part, **NEEDED), path, tmp_path)
    expected, _ = from_maskdino(released(*LOW2HIGH))
    found = getattr(model, part).state_dict()
    assert {f'panoptic_head.{name}' for name in found} == expected.keys()
    assert all(torch.equal(found[k.partition('.')[2]], t) for k, t in expected.items())
    [(level, text)] = [(level, text) for level, text in log if 'Model loaded from' in text]
    assert level == logging.WARNING  # the backbone is missing
    assert 'missing:    2 (keep their initial values): backbone.weight, backbone.bias' in text
    assert 'the same as sem_seg_head.predictor.decoder_norm.bias: ' in text
    assert not any('released weights need' in text for _, text in log)


def test_arguments_that_do_not_fit(path, tmp_path, log):  # noqa: F811
    """Weights adapt in training; an evaluation would give other numbers than the authors'."""
    needs = r'a\.pth: released weights need `panoptic_head` to have '
    for name, said in (
        ('double_norm', 'double_norm=True, but it has double_norm=False'),
        ('mask_padding', 'mask_padding=False, but it has mask_padding=True'),
        ('proposal_sizes', rf'proposal_sizes={SIZES}, but it has proposal_sizes={SIZES[::-1]}'),
    ):
        options = {key: value for key, value in NEEDED.items() if key != name}
        message = needs + re.escape(said)
        with pytest.raises(ValueError, match=message):
            load_trained(Model(**options), str(path))
        with pytest.raises(ValueError, match=message):
            make_runner(Model(**options), tmp_path, load_from=str(path)).test()
        log.clear()
        load_into(Model(**options), path, tmp_path)
        assert [level for level, text in log if re.search(message, text)] == [logging.WARNING]
    # once converted, a file is one of ours, and the config decides
    state, _ = from_maskdino(released(*LOW2HIGH))
    backbone = dict(Model().backbone.state_dict(prefix='backbone.'))
    torch.save(dict(state_dict=state | backbone), tmp_path / 'b.pth')
    load_trained(Model(), str(tmp_path / 'b.pth'))


def test_all_parameters_are_needed_to_predict(path, tmp_path):
    with pytest.raises(ValueError, match='2 of its parameters would be random: backbone'):
        load_trained(Model(**NEEDED), str(path))
    with pytest.raises(ValueError, match=r'would be random: .*cls_head.weight \(shape \(5, 64\)'):
        load_trained(Model(extra=1, **NEEDED), str(path))
    model = Model(**NEEDED)
    model.backbone = nn.Identity()
    assert load_trained(model, str(path)) == {}
    expected, _ = from_maskdino(released(*LOW2HIGH))
    assert torch.equal(
        model.panoptic_head.predictor.cls_head.weight,
        expected['panoptic_head.predictor.cls_head.weight'],
    )


def test_other_stages(tmp_path):
    """Weights of one stage do not fill a head of two, nor the other way round."""
    torch.save(dict(model=released(*HIGH2LOW)), tmp_path / 'a.pth')
    options = {**NEEDED, 'proposal_sizes': None}
    with pytest.raises(ValueError, match='`panoptic_head` to have two_stage=False, but it has two'):
        load_trained(Model(**options), str(tmp_path / 'a.pth'))
    torch.save(dict(model=released(*LOW2HIGH)), tmp_path / 'b.pth')
    with pytest.raises(ValueError, match='`decode_head` to have two_stage=True, proposal_sizes='):
        load_trained(Model('decode_head', two_stage=False, **options), str(tmp_path / 'b.pth'))


def test_resuming_from_it_is_refused(path, tmp_path):
    runner = make_runner(Model(**NEEDED), tmp_path, load_from=str(path), resume=True)
    with pytest.raises(ValueError, match='cannot be resumed from a file of the authors'):
        runner.train()


def test_unknown_names_are_refused(tmp_path):
    state = released(*LOW2HIGH) | {'sem_seg_head.predictor.more': torch.ones(1)}
    torch.save(dict(model=state), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'looks like a MaskDINO .* sem_seg_head.predictor.more'):
        load_into(Model(**NEEDED), tmp_path / 'a.pth', tmp_path)
