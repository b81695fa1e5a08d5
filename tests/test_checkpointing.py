"""Activation checkpointing by stage: `with_cp` of the backbones."""

import pytest
import torch

from itpn_mm.backbones import FastiTPN, HiViT

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


@pytest.mark.parametrize('with_cp', [3, (1, 0), (0, 0), (0, 3), 'all', None])
def test_bad_stages_are_named(with_cp):
    with pytest.raises(ValueError, match='`with_cp` must be True, False or rising stages out of'):
        HiViT(ARCH, img_size=32, with_cp=with_cp)
