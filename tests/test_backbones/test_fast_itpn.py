"""FastiTPN: what it does beyond HiViT, and that HiViT's contract holds with every option."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import MODELS as ROOT
from torch import nn

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.layers import Mlp, SwiGLU
from itpn_mm.layers.attention import QKVLinear
from tests.checklist import note_difference

from .test_hivit_masked import draw, patches_of

TINY = dict(embed_dims=16, depths=(1, 1, 2), num_heads=2)
REL_POS = (None, 'block', 'shared', 'decoupled')
# Parameters of the released backbones without their classifier.
RELEASED = dict(tiny=24219976, small=39902920, base=84825192, large=312017320)
VARIANTS = [
    dict(),
    dict(cls_token=True, rel_pos_bias='block'),
    dict(cls_token=True, rel_pos_bias='shared'),
    dict(cls_token=True, rel_pos_bias='decoupled'),
    dict(rel_pos_bias='block'),
    dict(rel_pos_bias='decoupled'),
    dict(cls_token=True, use_abs_pos_emb=False),
    dict(sub_norm=False),
    dict(swiglu=False),
    dict(qkv_bias=False, layer_scale_init_value=None),
]
variants = pytest.mark.parametrize('options', VARIANTS, ids=str)


def build(**kwargs):
    """A small model whose relative positions are not zero as they are at the start."""
    torch.manual_seed(0)
    model = FastiTPN(kwargs.pop('arch', TINY), **{'img_size': 64, **kwargs})
    for name, parameter in model.named_parameters():
        if 'rel_pos' in name or name.endswith(('q_bias', 'v_bias')):
            nn.init.normal_(parameter)
    return model


def test_it_is_a_hivit_of_other_layers():
    model = build()
    assert isinstance(model, HiViT)
    for block in (*model.stages[0], *model.stages[1]):
        assert isinstance(block.mlp, Mlp) and isinstance(block.mlp.norm, nn.LayerNorm)
        assert isinstance(block.ls2, nn.Identity)  # layer scale in stage 3 only
    for block in model.stages[2]:
        assert isinstance(block.mlp, SwiGLU) and isinstance(block.mlp.norm, nn.LayerNorm)
        assert isinstance(block.attn.qkv, QKVLinear)
        assert (block.ls1.gamma == 0.1).all() and (block.ls2.gamma == 0.1).all()
        assert block.mlp.fc2.in_features == 3 * 16
    assert isinstance(model.patch_embed.norm, nn.Identity)
    assert [merge.norm.normalized_shape for merge in model.merges] == [(4,), (8,)]
    assert model.rel_pos is None and model.cls_token is None


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('arch', RELEASED)
def test_sizes_of_the_zoo_equal_the_released_models(arch):
    with torch.device('meta'):
        model = FastiTPN(arch)
    classifier = 2 * model.embed_dims + 1000 * (model.embed_dims + 1)
    assert sum(p.numel() for p in model.parameters()) + classifier == RELEASED[arch]


def test_giant_has_the_published_size():
    with torch.device('meta'):
        model = HiViT('giant')
    assert round(sum(p.numel() for p in model.parameters()) / 1e8) == 10


@pytest.mark.checklist('fuzz-sizes')
@settings(max_examples=30, deadline=None)
@given(height=st.integers(16, 96), width=st.integers(16, 96), options=st.sampled_from(VARIANTS))
def test_any_image_size(height, width, options):
    """The release takes images of one size only."""
    model = build(**options).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, height, width))
    h, w = -(-height // 16), -(-width // 16)
    shapes = [(1, 4, 4 * h, 4 * w), (1, 8, 2 * h, 2 * w), (1, 16, h, w)]
    assert [tuple(x.shape) for x in maps] == shapes
    assert all(x.isfinite().all() and x.is_contiguous() for x in maps)


@pytest.mark.checklist('equivalences')
@variants
@torch.no_grad()
def test_all_patches_kept_equals_dense(options):
    model, images, size = build(**options).eval(), torch.randn(2, 3, 48, 80), (48, 80)
    keep = draw(2, size)
    dense, masked = model.forward_stages(images), model.forward_stages(images, keep)
    expected = [patches_of(x, keep, side) for x, side in zip(dense, (4, 2, 1))]
    note_difference('masking of 0 %', masked, expected, '<= 1e-5')
    for x, y in zip(expected, masked):
        torch.testing.assert_close(y, x, atol=1e-5, rtol=1e-4)


@pytest.mark.checklist('equivalences')
@variants
@torch.no_grad()
def test_an_image_gives_the_same_alone_and_in_a_batch(options):
    model, images = build(**options).eval(), torch.randn(3, 3, 48, 32)
    for x, y in zip(model(images), model(images[1:2])):
        torch.testing.assert_close(x[1:2], y)


@variants
@pytest.mark.parametrize('size', [(64, 64), (48, 80)])
def test_every_parameter_gets_a_gradient(options, size):
    model = build(**options, drop_path_rate=0.0)
    sum(x.square().sum() for x in model(torch.randn(2, 3, *size))).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.checklist('equivalences')
@variants
def test_activation_checkpointing_changes_nothing(options):
    image, results = torch.randn(1, 3, 48, 64), []
    for with_cp in (False, True):
        model = build(**options, with_cp=with_cp)
        out = model(image)
        sum(x.square().sum() for x in out).backward()
        results.append([*out, *(p.grad for p in model.parameters())])
    note_difference('checkpointing, with gradients', *results, '<= 1e-5')
    for x, y in zip(*results):
        torch.testing.assert_close(x, y)


@pytest.mark.checklist('equivalences')
def test_training_and_inference_agree():
    """Inference goes through the tokens in slices."""
    model, image = build().eval(), torch.randn(1, 3, 800, 800)
    with torch.no_grad():
        fast = model(image)
    for x, y in zip(fast, model(image)):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('cls_token', [False, True])
def test_frozen_stages(cls_token):
    model = build(cls_token=cls_token, rel_pos_bias='shared', frozen_stages=3)
    assert not any(p.requires_grad for p in model.parameters())
    trained = build(cls_token=cls_token, frozen_stages=2)
    names = {n.split('.')[0] for n, p in trained.named_parameters() if p.requires_grad}
    assert names == {'stages', 'merges', 'pos_embed'} | ({'cls_token'} if cls_token else set())


@pytest.mark.checklist('amp')
def test_autocast_in_bfloat16():
    model, image = build(cls_token=True, rel_pos_bias='block').eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(image)
        with torch.autocast('cpu', torch.bfloat16):
            rough = model(image)
    for x, y in zip(exact, rough):
        assert F.cosine_similarity(x.flatten(), y.float().flatten(), 0) > 0.999


@pytest.mark.checklist('equivalences')
@pytest.mark.parametrize('options', VARIANTS[:4], ids=str)
def test_one_graph_for_the_compiler(options):
    """Traced as a whole, without a break; without a backend that compiles."""
    model, image = build(**options).eval(), torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        traced = torch.compile(model, backend='eager', fullgraph=True)(image)
        expected = model(image)
        note_difference('one traced graph', traced, expected, '<= 1e-5')
        for x, y in zip(traced, expected):
            torch.testing.assert_close(x, y)


@pytest.mark.checklist('no-shared-state')
def test_deepcopy():
    model, image = build(cls_token=True, rel_pos_bias='decoupled').eval(), torch.randn(1, 3, 32, 32)
    for x, y in zip(model(image), copy.deepcopy(model)(image)):
        assert torch.equal(x, y)


def test_initialisation():
    """Stage 3 as linear layers, the early stages as the convolutions of the release."""
    model = build(arch=dict(embed_dims=256, depths=(1, 1, 1), num_heads=4), cls_token=True)
    assert model.stages[2][0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    for linear, inputs in ((model.stages[0][0].mlp.fc1, 64), (model.merges[1].reduction, 512)):
        # uniform in +- 1 / sqrt(inputs)
        assert linear.weight.abs().max().item() == pytest.approx(inputs**-0.5, rel=0.05)
        assert linear.weight.std().item() == pytest.approx((3 * inputs) ** -0.5, rel=0.05)


LAYERS = {  # of depths (1, 1, 2): merges count as layers
    'patch_embed.proj.weight': 0,
    'pos_embed': 0,
    'cls_token': 0,
    'stages.0.0.mlp.fc1.weight': 1,
    'merges.0.reduction.weight': 2,
    'stages.1.0.norm2.bias': 3,
    'merges.1.norm.weight': 4,
    'stages.2.0.attn.qkv.q_bias': 5,
    'stages.2.1.ls1.gamma': 6,
    'head.fc.weight': 7,
}


@pytest.mark.parametrize('name, depth', LAYERS.items())
def test_depth_in_layers(name, depth):
    model = build(cls_token=True)
    if name.startswith('head'):
        assert model.get_layer_depth(name, 'backbone.', 'layer') == (depth, 8)
    else:
        assert model.get_layer_depth(f'backbone.{name}', 'backbone.', 'layer') == (depth, 8)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(arch='huge'),
            r"`arch` must be a dict or one of \['base', 'large', 'small', 'tiny'\]",
        ),
        (dict(rel_pos_bias='decomposed'), r"`rel_pos_bias` must be one of .*'decoupled'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_it_pretrains_on_pixels_too():
    pytest.importorskip('mmpretrain')
    from tests.test_pretraining.models import build_itpn

    arch = dict(embed_dims=32, depths=(1, 1, 2), num_heads=2)
    backbone = dict(_delete_=True, type='itpn_mm.FastiTPN', arch=arch, img_size=64, cls_token=True)
    model = build_itpn(backbone=backbone)
    losses = model.loss(torch.randn(2, 3, 64, 64))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_it_builds_from_the_root_registry():
    model = ROOT.build(dict(type='itpn_mm.FastiTPN', arch=TINY, img_size=64))
    assert type(model) is FastiTPN
