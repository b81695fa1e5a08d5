"""Pooling of the classifiers: the authors' formulas, errors, and loading."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from itpn_mm.backbones import HiViT
from itpn_mm.necks import GlobalAveragePoolNorm
from itpn_mm.registry import MODELS
from tests.golden import INDEX, assert_matches, build_backbone, cases, load, our_state, under


def build(**kwargs) -> GlobalAveragePoolNorm:
    """With a norm that is not the identity."""
    neck = GlobalAveragePoolNorm(8, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for parameter in neck.parameters():
        nn.init.normal_(parameter, generator=generator)
    return neck


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('name, case, dtype', cases('pixel_cls'))
def test_golden_classifier(name, case, dtype):
    """A whole classifier of the release: backbone, this neck, one linear layer."""
    tensors = load(name, dtype)
    state = our_state(tensors)
    backbone = build_backbone(name, state)
    neck = GlobalAveragePoolNorm(backbone.embed_dims, norm_eps=INDEX[name]['norm_eps']).to(dtype)
    neck.load_state_dict(under(state, 'neck.'), strict=True)
    with torch.no_grad():
        (x,) = neck(backbone(tensors[f'in/{case}/image']))
        logits = F.linear(x, state['head.fc.weight'], state['head.fc.bias'])
    assert_matches(logits, tensors[f'out/{case}/logits'], name, case)


@pytest.mark.parametrize('gap_before_norm', [True, False])
def test_order_of_mean_and_norm(gap_before_norm):
    neck = build(gap_before_norm=gap_before_norm, norm_eps=1e-2)
    maps = torch.randn(2, 4, 6, 4), torch.randn(2, 8, 3, 2)
    (found,) = neck(maps)
    last = maps[-1]
    if gap_before_norm:
        assert neck.state_dict().keys() == {'norm.weight', 'norm.bias'}
        mean = last.sum((2, 3)) / 6
        centred = mean - mean.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-2).sqrt()
        expected = scaled * neck.norm.weight + neck.norm.bias
    else:
        assert neck.state_dict().keys() == {'pre_norm.weight', 'pre_norm.bias'}
        centred = last - last.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-2).sqrt()
        shape = (1, 8, 1, 1)
        each = scaled * neck.pre_norm.weight.view(shape) + neck.pre_norm.bias.view(shape)
        expected = each.sum((2, 3)) / 6
    assert found.shape == (2, 8)
    torch.testing.assert_close(found, expected)


def test_the_two_orders_differ():
    x = (torch.randn(2, 8, 3, 3),)
    first, second = (build(gap_before_norm=order)(x)[0] for order in (True, False))
    assert not torch.allclose(first, second, atol=1e-2)


def test_maps_of_a_backbone():
    arch = dict(embed_dims=8, depths=(1, 1, 1), num_heads=1)
    backbone = HiViT(arch, img_size=32)
    (found,) = build()(backbone(torch.randn(2, 3, 64, 32)))
    assert found.shape == (2, 8)


def test_it_is_registered():
    assert type(MODELS.build(dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=8))) is (
        GlobalAveragePoolNorm
    )


@pytest.mark.parametrize('in_channels', [0, -1, 2.0, None])
def test_bad_in_channels(in_channels):
    with pytest.raises(ValueError, match='`in_channels` must be a number of at least 1, but got'):
        GlobalAveragePoolNorm(in_channels)


@pytest.mark.parametrize('shape', [(2, 4, 3, 3), (2, 8)])
def test_map_that_does_not_fit(shape):
    with pytest.raises(ValueError, match=r'`in_channels` of the neck is 8, but .* \(2, .*set'):
        build()((torch.randn(shape),))


def test_norm_of_a_trained_classifier_is_loaded(tmp_path):
    source = build()
    state = {f'neck.{name}': tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict={**state, 'head.fc.bias': torch.zeros(3)}), path)
    neck = GlobalAveragePoolNorm(8, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    neck.init_weights()
    for name, tensor in source.state_dict().items():
        assert torch.equal(neck.state_dict()[name], tensor)


def test_norm_of_the_other_kind_is_refused(tmp_path):
    path = tmp_path / 'classifier.pth'
    torch.save({f'neck.{name}': t for name, t in build().state_dict().items()}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    neck = GlobalAveragePoolNorm(8, gap_before_norm=False, init_cfg=init_cfg)
    with pytest.raises(ValueError, match='no tensor under `neck'):
        neck.init_weights()
