"""Channel MLPs and the merge of Fast-iTPN against the plain formulations of the release."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itpn_mm.layers import Mlp, PatchMerge, SwiGLU
from itpn_mm.layers.attention import QKVLinear


@pytest.mark.parametrize('sub_norm', [False, True])
def test_swiglu_is_gate_and_value(sub_norm):
    mlp, x = SwiGLU(8, 24, sub_norm=sub_norm), torch.randn(2, 5, 8)
    (gate, value), (gate_bias, value_bias) = mlp.fc1.weight.chunk(2), mlp.fc1.bias.chunk(2)
    hidden = F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, value, value_bias)
    if sub_norm:
        nn.init.normal_(mlp.norm.weight)
        hidden = F.layer_norm(hidden, (24,), mlp.norm.weight, mlp.norm.bias, 1e-6)
    torch.testing.assert_close(mlp(x), F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias))


def test_sub_norm_stands_behind_the_activation():
    mlp, x = Mlp(8, 24, sub_norm=True), torch.randn(2, 5, 8)
    nn.init.normal_(mlp.norm.weight)
    hidden = F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias))
    hidden = F.layer_norm(hidden, (24,), mlp.norm.weight, mlp.norm.bias, 1e-6)
    torch.testing.assert_close(mlp(x), F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias))
    assert not any('norm' in name for name, _ in Mlp(8, 24).named_parameters())


def test_keys_have_no_bias():
    qkv, x = QKVLinear(8), torch.randn(2, 5, 8)
    nn.init.normal_(qkv.q_bias)
    nn.init.normal_(qkv.v_bias)
    q, k, v = qkv(x).chunk(3, -1)
    wq, wk, wv = qkv.weight.chunk(3)
    torch.testing.assert_close(q, F.linear(x, wq, qkv.q_bias))
    torch.testing.assert_close(k, F.linear(x, wk))
    torch.testing.assert_close(v, F.linear(x, wv, qkv.v_bias))
    assert sum(p.numel() for p in qkv.parameters()) == 3 * 64 + 2 * 8


def test_merge_of_normalised_tokens_is_a_convolution():
    merge, x = PatchMerge(4, norm_first=True), torch.randn(2, 6, 8, 4)
    nn.init.normal_(merge.norm.weight)
    conv = nn.Conv2d(4, 8, 2, 2)
    weight = conv.weight.permute(0, 3, 2, 1).reshape(8, 16)  # (out, column, row, channel)
    merge.load_state_dict(
        {
            'norm.weight': merge.norm.weight,
            'norm.bias': merge.norm.bias,
            'reduction.weight': weight,
            'reduction.bias': conv.bias,
        }
    )
    expected = conv(merge.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(merge(x), expected)
