"""Activation checkpointing by stage: `with_cp` of backbones and pyramid."""

import pytest
import torch

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.layers import MlpBlock
from itpn_mm.necks import TransformerPyramidNeck

ARCH = dict(embed_dims=32, depths=(1, 2, 3), num_heads=2)


def count_passes(model: torch.nn.Module, images: torch.Tensor) -> list[list[int]]:
    """Forward passes of each block of each stage, in a forward and a backward pass of the model."""
    counts = [[0] * len(stage) for stage in model.stages]

    def count(stage: int, block: int):
        def hook(*_):
            counts[stage][block] += 1

        return hook

    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):
            block.register_forward_pre_hook(count(i, j))
    sum(maps.square().sum() for maps in model(images)).backward()
    return counts


@pytest.mark.parametrize('kind', [HiViT, FastiTPN])
@pytest.mark.parametrize('with_cp', [False, (0,), [1], (0, 1), (2,), True])
def test_stages_that_are_recomputed(kind, with_cp):
    torch.manual_seed(0)
    model = kind(ARCH, img_size=32, with_cp=with_cp).train()
    stages = {False: (), True: (0, 1, 2)}[with_cp] if isinstance(with_cp, bool) else with_cp
    images = torch.randn(1, 3, 32, 32)
    expected = [[1 + (i in stages)] * depth for i, depth in enumerate(ARCH['depths'])]
    assert count_passes(model, images) == expected
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    plain = kind(ARCH, img_size=32).train()
    plain.load_state_dict(model.state_dict())
    count_passes(plain, images)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


def test_pyramid_is_recomputed():
    torch.manual_seed(0)
    maps = [torch.randn(1, c, s, s, requires_grad=True) for c, s in ((8, 16), (16, 8), (32, 4))]
    results = []
    for with_cp in (False, True):
        torch.manual_seed(1)
        neck = TransformerPyramidNeck((8, 16, 32), 16, with_cp=with_cp)
        passes = []
        for module in neck.modules():
            if isinstance(module, MlpBlock):
                module.register_forward_pre_hook(lambda block, _, seen=passes: seen.append(block))
        sum(level.square().sum() for level in neck(maps)).backward()
        results.append({name: p.grad for name, p in neck.named_parameters()})
        assert len(passes) == (1 + with_cp) * len(set(passes)) == (1 + with_cp) * (2 * 2 + 3)
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


@pytest.mark.parametrize('with_cp', [3, (1, 0), (0, 0), (0, 3), 'all', None])
def test_bad_stages_are_named(with_cp):
    with pytest.raises(ValueError, match='`with_cp` must be True, False or rising stages out of'):
        HiViT(ARCH, img_size=32, with_cp=with_cp)
