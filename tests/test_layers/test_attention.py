import pytest
import torch

from itpn_mm.layers import Attention, DecomposedRelativePosition, RelativePositionBias, TokenGrid
from tests.checklist import note_difference


def plain_attention(module, x, bias=0.0):
    """The formulas as they read."""
    b, length, c = x.shape
    head_dim = c // module.num_heads
    qkv = module.qkv(x).view(b, length, 3, module.num_heads, head_dim)
    q, k, v = (qkv[:, :, i].transpose(1, 2) for i in range(3))
    logits = q @ k.transpose(-2, -1) / head_dim**0.5 + (bias(q) if callable(bias) else bias)
    return module.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_attention_as_written(qkv_bias):
    module, x = Attention(24, 3, qkv_bias=qkv_bias), torch.randn(2, 7, 24)
    assert (module.qkv.bias is not None) == qkv_bias
    found, expected = module(x), plain_attention(module, x)
    note_difference('fused attention', [found], [expected], '<= 1e-5')
    torch.testing.assert_close(found, expected)


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@pytest.mark.parametrize('kind', ['joint', 'decomposed'])
def test_attention_with_relative_positions(kind):
    rel_pos = (
        RelativePositionBias((2, 3), 3) if kind == 'joint' else DecomposedRelativePosition(3, 8)
    )
    for table in rel_pos.parameters():
        torch.nn.init.normal_(table)
    module, x, tokens = Attention(24, 3, rel_pos=rel_pos), torch.randn(2, 6, 24), TokenGrid(2, 3)
    result = module(x, tokens)
    torch.testing.assert_close(result, plain_attention(module, x, lambda q: rel_pos(q, tokens)))
    assert not torch.allclose(result, plain_attention(module, x))


@torch.no_grad()
def test_a_mask_hides_keys():
    module, x = Attention(24, 3), torch.randn(1, 6, 24)
    mask = torch.tensor([True, True, False, True, False, True])
    hidden = module(x, bias=mask[None, None, None])
    torch.testing.assert_close(hidden[:, mask], module(x[:, mask]))


def test_dropout_acts_after_the_projection_in_training_only():
    module, x = Attention(24, 3, drop_rate=0.5), torch.randn(4, 6, 24)
    assert 0.3 < (module(x) == 0).float().mean() < 0.7
    assert (module.eval()(x) != 0).all()
