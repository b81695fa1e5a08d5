import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.arithmetic import closed_form, count_gflop, counted, window_lengths  # noqa: E402
from benchmarks.models import SETTINGS, Candidate, shipped  # noqa: E402

# GFLOP of a Fast-iTPN at 224 x 224, and parameters of the released classifier
FAST_ITPN = {
    'fastitpn-tiny': (10.68, 24_219_976),
    'fastitpn-small': (17.86, 39_902_920),
    'fastitpn-base': (38.10, 84_825_192),
    'fastitpn-large': (131.48, 312_017_320),
}


@pytest.mark.parametrize('name', sorted(FAST_ITPN))
def test_arithmetic_and_parameters_of_fast_itpn(name):
    gflop, parameters = FAST_ITPN[name]
    backbone = Candidate(name, 'dense', pyramid=False)
    assert round(counted(backbone, (224, 224)), 2) == gflop
    assert round(closed_form(backbone, (224, 224)), 2) == gflop
    with torch.device('meta'):
        model = shipped(backbone)
    width = model.backbone.embed_dims
    head = 2 * width + 1000 * (width + 1)  # a LayerNorm and a linear layer
    assert sum(p.numel() for p in model.parameters()) + head == parameters


@pytest.mark.parametrize('variant', ['plain', *SETTINGS, 'migration-40@1', 'all@2'])
@pytest.mark.parametrize(
    ('name', 'size', 'pyramid'),
    [
        ('fastitpn-tiny', (800, 1280), True),
        ('hivit-tiny', (336, 720), False),  # 21 x 45 patches: windows of four shapes
    ],
)
def test_closed_form_is_what_torch_counts(name, size, pyramid, variant):
    candidate = Candidate(name, variant, pyramid)
    assert closed_form(candidate, size) == pytest.approx(counted(candidate, size), rel=1e-6)


@pytest.mark.parametrize('variant', SETTINGS)
@pytest.mark.parametrize('grid', [(50, 80), (21, 45), (9, 14)])
def test_windows_of_the_closed_form_hold_the_tokens_of_the_model(variant, grid):
    with torch.device('meta'):
        backbone = shipped(Candidate('fastitpn-base', variant)).backbone
    if variant == 'dense':
        assert window_lengths(SETTINGS[variant], grid, 24) == [window_lengths({}, grid, 1)[0]] * 24
        return
    windows = window_lengths(SETTINGS[variant], grid, 24)
    assert [sum(lengths) for lengths in windows] == backbone.acceleration.tokens_per_layer(*grid)


def test_count_gflop():
    linear = torch.nn.Linear(32, 8, bias=False, device='meta')
    assert count_gflop(linear, (5, 32)) == pytest.approx(2 * 5 * 32 * 8 / 1e9)


def test_a_training_pass_is_counted_with_its_backward_pass():
    candidate = Candidate('fastitpn-test', 'all')
    ratio = counted(candidate, (64, 64), train=True) / counted(candidate, (64, 64))
    assert 2.7 < ratio < 3.1  # not quite 3: images need no gradient
