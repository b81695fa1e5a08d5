"""The linear layer is ``nn.Linear`` to everybody, whoever computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from itpn_mm.layers import Linear
from itpn_mm.layers import linear as module

SHAPES = [(5, 8), (2, 3, 8), (2, 4, 6, 8), (1, 1, 8)]


@pytest.fixture
def fused(monkeypatch):
    """Counts the calls of oneDNN's layer."""
    if not module._HAS_FUSED:
        pytest.skip('a torch without oneDNN')
    calls, real = [], module._FUSED

    def counted(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(module, '_FUSED', counted)
    return calls


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_inference_gives_what_training_gives(shape, bias, fused):
    layer, x = Linear(8, 24, bias), torch.randn(shape)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert not fused  # a graph for the backward pass is needed
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        assert len(fused) == 1
        strided = x.expand(3, *shape).transpose(0, -2)
        torch.testing.assert_close(layer(strided), F.linear(strided, layer.weight, layer.bias))


@torch.no_grad()
def test_other_dtypes_and_autocast(fused):
    layer, x = Linear(8, 24), torch.randn(5, 8)
    for dtype in (torch.float64, torch.bfloat16):
        assert layer.to(dtype)(x.to(dtype)).dtype == dtype
    with torch.autocast('cpu', torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    assert not fused


@torch.no_grad()
def test_operations_are_counted(fused):
    layer, x = Linear(8, 24), torch.randn(5, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 5 * 8 * 24
    assert not fused


@torch.no_grad()
def test_hooks_are_called():
    layer, seen = Linear(8, 24), []
    layer.register_forward_hook(lambda _, args, out: seen.append(out))
    layer(torch.randn(5, 8))
    assert len(seen) == 1 and isinstance(layer, nn.Linear)
