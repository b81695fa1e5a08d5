import copy
import pickle
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.backbones import HiViT
from itpn_mm.layers import MlpBlock, PatchSplit
from itpn_mm.necks import TransformerPyramidNeck

STRIDES = (4, 8, 16, 32, 64)
CHOICES = [c for n in range(1, 6) for c in combinations(STRIDES, n)]
DIMS = (4, 8, 16)


def build(out_strides=STRIDES, **kwargs):
    torch.manual_seed(0)
    return TransformerPyramidNeck(DIMS, 8, out_strides=out_strides, **kwargs)


def maps(height=64, width=64, batch=2, strides=(4, 8, 16), dims=DIMS):
    return [
        torch.randn(batch, dim, height // s, width // s).contiguous(
            memory_format=torch.channels_last
        )
        for s, dim in zip(strides, dims)
    ]


# What it computes


@torch.no_grad()
def test_the_pyramid_as_the_paper_writes_it():
    """V^16 = U^16, V^s = U^s + g^s(V^2s), with blocks on it; the top is projected last."""
    neck, inputs = build((4, 8, 16)).eval(), maps(32, 48)
    u4, u8, u16 = (x.permute(0, 2, 3, 1) for x in inputs)
    v8 = neck.blocks['p8'](neck.laterals['p8'](u8) + neck.splits['p8'](u16))
    v4 = neck.blocks['p4'](neck.laterals['p4'](u4) + neck.splits['p4'](v8))
    expected = [
        neck.outputs['p4'](v4),
        neck.outputs['p8'](v8),
        neck.outputs['p16'](neck.laterals['p16'](u16)),
    ]
    for x, y in zip(neck(inputs), expected, strict=True):
        torch.testing.assert_close(x, y.permute(0, 3, 1, 2))


@pytest.mark.parametrize('pool, function', [('avg', F.avg_pool2d), ('max', F.max_pool2d)])
def test_coarse_levels_are_pooled_from_the_one_below(pool, function):
    outputs = build(pool=pool)(maps(80, 112))
    assert [x.shape[2:] for x in outputs] == [(20, 28), (10, 14), (5, 7), (2, 3), (1, 1)]
    torch.testing.assert_close(outputs[3], function(outputs[2], 2))
    torch.testing.assert_close(outputs[4], function(outputs[3], 2))


def test_joined_with_the_inputs():
    """Each level is followed by the backbone's map on channels, also in what is pooled from it."""
    plain, joined = build(), build(concat_inputs=True)
    inputs = maps()
    expected, outputs = plain(inputs), joined(inputs)
    assert joined.level_channels == (12, 16, 24, 24, 24)
    assert plain.level_channels == (8,) * 5
    sources = [*inputs, F.avg_pool2d(inputs[2], 2), F.avg_pool2d(inputs[2], 4)]
    for x, level, source in zip(outputs, expected, sources, strict=True):
        torch.testing.assert_close(x, torch.cat([level, source], 1))


@pytest.mark.checklist('fuzz-sizes')
@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 9), w=st.integers(1, 9), out_strides=st.sampled_from(CHOICES))
def test_any_size_and_choice_of_levels(h, w, out_strides):
    neck = build(out_strides)
    coarsest = max(out_strides[-1] // 16, 1)
    if min(h, w) < coarsest:
        with pytest.raises(ValueError, match='the image is too small for a level of stride'):
            neck(maps(16 * h, 16 * w))
        return
    outputs = neck(maps(16 * h, 16 * w))
    assert [x.shape[1:] for x in outputs] == [(8, 16 * h // s, 16 * w // s) for s in out_strides]


@pytest.mark.parametrize('out_strides', CHOICES)
def test_every_parameter_gets_a_gradient_whatever_is_chosen(out_strides):
    """What no level needs is not built; an unused parameter would stop DistributedDataParallel."""
    neck = build(out_strides)
    assert list(neck.parameters())
    sum(x.square().sum() for x in neck(maps())).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize('out_strides', CHOICES)
def test_a_choice_of_levels_gives_the_same_maps(out_strides):
    everything, some, inputs = build(), build(out_strides), maps()
    missing, unexpected = some.load_state_dict(everything.state_dict(), strict=False)
    assert not missing
    assert bool(unexpected) == (len(some.state_dict()) < len(everything.state_dict()))
    expected = dict(zip(STRIDES, everything(inputs)))
    for x, stride in zip(some(inputs), out_strides, strict=True):
        assert torch.equal(x, expected[stride])


@pytest.mark.parametrize(
    'in_strides, dims, out_strides',
    [
        (
            (4, 8, 16, 32),
            (3, 5, 7, 9),
            (4, 8, 16, 32, 64),
        ),  # a pyramid of any backbone, like ResNet
        ((8, 16), (5, 7), (8, 16, 32)),
        ((16,), (7,), (16, 32, 64, 128)),
    ],
)
def test_other_backbones(in_strides, dims, out_strides):
    neck = TransformerPyramidNeck(dims, 8, in_strides=in_strides, out_strides=out_strides)
    outputs = neck(maps(128, 256, 1, in_strides, dims))
    assert [x.shape[1:] for x in outputs] == [(8, 128 // s, 256 // s) for s in out_strides]
    sum(x.square().sum() for x in outputs).backward()
    assert all(p.grad is not None for p in neck.parameters())


# Options


@pytest.mark.checklist('no-shared-state')
def test_names_of_the_parameters_are_kept():
    """Files written by one version must load in the next."""
    block = ['norm2.weight', 'norm2.bias'] + [
        f'mlp.{fc}.{kind}' for fc in ('fc1', 'fc2') for kind in ('weight', 'bias')
    ]
    expected = {'laterals.p16.weight', 'laterals.p16.bias'}
    expected |= {f'laterals.p{s}.weight' for s in (4, 8)}
    for s in (4, 8):
        expected |= {f'splits.p{s}.{k}' for k in ('norm.weight', 'norm.bias', 'expand.weight')}
    expected |= {f'blocks.p{s}.{i}.{name}' for s in (4, 8) for i in (0, 1) for name in block}
    expected |= {f'outputs.p{s}.{name}' for s in (4, 8, 16) for name in block}
    assert build().state_dict().keys() == expected
    biases = build(bias=True).state_dict().keys() - expected
    assert biases == {
        f'{k}.bias' for s in (4, 8) for k in (f'laterals.p{s}', f'splits.p{s}.expand')
    }


def test_the_top_is_not_projected_if_it_has_the_width_already():
    neck = TransformerPyramidNeck(DIMS, 16)
    assert set(neck.laterals) == {'p4', 'p8'}
    assert neck(maps())[2].shape == (2, 16, 4, 4)


@pytest.mark.parametrize(
    'depth, expected', [(1, (1, 1)), (3, (3, 3)), ((2, 0), (2, 0)), ([1, 2], (1, 2))]
)
def test_depth_is_given_finest_first(depth, expected):
    neck = build(depth=depth)
    assert (len(neck.blocks['p4']), len(neck.blocks['p8'])) == expected
    neck(maps())


def test_options_reach_the_layers():
    neck = build(mlp_ratio=2.0, norm_eps=1e-5)
    blocks = [m for m in neck.modules() if isinstance(m, MlpBlock)]
    assert len(blocks) == 7
    assert {b.mlp.fc1.out_features for b in blocks} == {16}
    assert {m.eps for m in neck.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert [m.expand.out_features for m in neck.modules() if isinstance(m, PatchSplit)] == [32, 32]


@pytest.mark.checklist('no-shared-state')
def test_building_one_neck_leaves_another_alone():
    first = TransformerPyramidNeck()
    before = first.in_channels, first.in_strides, first.out_strides
    channels, strides = list(DIMS), [8, 32]
    second = TransformerPyramidNeck(channels, 8, out_strides=strides)
    channels.append(1)
    strides.append(64)
    assert second.in_channels == DIMS and second.out_strides == (8, 32)
    assert (first.in_channels, first.in_strides, first.out_strides) == before
    assert before == ((128, 256, 512), (4, 8, 16), STRIDES)


@pytest.mark.checklist('no-shared-state')
@pytest.mark.parametrize('pool', ['avg', 'max'])
def test_copying_and_pickling(pool):
    neck, inputs = build(pool=pool), maps()
    expected = neck(inputs)
    for twin in (copy.deepcopy(neck), pickle.loads(pickle.dumps(neck))):
        for x, y in zip(twin(inputs), expected, strict=True):
            assert torch.equal(x, y)


def test_maps_are_contiguous():
    """mmcv's operators read memory as (B, C, H, W) whatever the strides say."""
    for x in (*build()(maps()), *build(concat_inputs=True)(maps())):
        assert x.is_contiguous()


def test_roi_align_reads_the_levels_right():
    ops = pytest.importorskip('mmcv.ops')
    level = build()(maps())[0].detach()
    rois = torch.tensor([[0, 1.0, 2.0, 30.0, 25.0]])
    align = ops.RoIAlign(7, 1 / 4)
    assert torch.equal(
        align(level, rois), align(level.clone(memory_format=torch.contiguous_format), rois)
    )


@pytest.mark.checklist('amp')
def test_autocast_in_bfloat16():
    neck, inputs = build(), maps()
    expected = neck(inputs)
    with torch.autocast('cpu', torch.bfloat16):
        outputs = neck(inputs)
    sum(x.float().square().sum() for x in outputs).backward()
    for x, y in zip(outputs, expected, strict=True):
        assert F.cosine_similarity(x.float().flatten(), y.flatten(), 0) > 0.999
    assert all(p.grad.isfinite().all() for p in neck.parameters())


# Bad input


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(in_channels=(4, 8)),
            r'`in_channels` \(4, 8\) and `in_strides` \(4, 8, 16\) .* one length',
        ),
        (dict(in_channels=()), r'`in_channels` \(\) and `in_strides` .* one length'),
        (dict(in_channels=16), r'`in_channels` must be .* but got 16'),
        (dict(in_channels=(4, 8, 0)), r'`in_channels` must be .* but got \(4, 8, 0\)'),
        (dict(out_channels=0), r'`out_channels` must be .* at least 1, but got 0'),
        (dict(out_channels=(8, 8, 8)), r'`out_channels` must be .* but got \(8, 8, 8\)'),
        (dict(in_strides=(4, 8, 32)), r'`in_strides` must double .* got \(4, 8, 32\)'),
        (dict(in_strides=(16, 8, 4)), r'`in_strides` must double .* got \(16, 8, 4\)'),
        (dict(out_strides=()), r'`out_strides` must be rising and out of .* got \(\)'),
        (dict(out_strides=(8, 4)), r'`out_strides` must be rising .* got \(8, 4\)'),
        (dict(out_strides=(4, 4)), r'`out_strides` must be rising .* got \(4, 4\)'),
        (
            dict(out_strides=(2, 4)),
            r'`out_strides` must be rising and out of \(4, 8, 16, 32, 64, 128\), but got \(2, 4\)',
        ),
        (dict(out_strides=(4, 24)), r'`out_strides` .* got \(4, 24\)'),
        (dict(out_strides=4), r'`out_strides` .* got 4'),
        (
            dict(depth=(1, 2, 3)),
            r'`depth` must be one number, or 2 for 2 splittings, .* \(1, 2, 3\)',
        ),
        (dict(depth=-1), r'`depth` must be one number, or 2 .* got -1'),
        (dict(depth=1.5), r'`depth` must be one number, or 2 .* got 1.5'),
        (dict(pool='mean'), r"`pool` must be one of \['avg', 'max'\], but got 'mean'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerPyramidNeck(**{'in_channels': DIMS, **options})


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match='num_outs'):
        TransformerPyramidNeck(DIMS, num_outs=5)


@pytest.mark.parametrize('dims', [(4, 8, 12), (4, 8), (4, 8, 16, 32)])
def test_maps_of_other_channels(dims):
    found = str(dims).replace('(', r'\(').replace(')', r'\)')
    message = (
        rf'`in_channels` of the neck is \(4, 8, 16\), but the backbone gives maps of {found} '
        rf'channels; set neck.in_channels={found}'
    )
    inputs = maps(64, 64, 1, (4, 8, 16, 32)[: len(dims)], dims)
    with pytest.raises(ValueError, match=message):
        build()(inputs)


def test_a_backbone_with_other_channels_is_named():
    backbone = HiViT(dict(embed_dims=32, depths=(1, 1, 1), num_heads=2), img_size=32)
    with pytest.raises(ValueError, match=r'set neck.in_channels=\(8, 16, 32\)'):
        build()(backbone(torch.randn(1, 3, 64, 64)))


def test_maps_that_do_not_halve():
    inputs = [torch.randn(1, c, *size) for c, size in zip(DIMS, [(25, 25), (13, 13), (7, 7)])]
    message = r'differ by a factor of 2, but got \(25, 25\) and \(13, 13\); pad images to .* 16'
    with pytest.raises(ValueError, match=message):
        build()(inputs)


@pytest.mark.parametrize('size, stride', [(16, 32), (32, 64), (48, 64)])
def test_images_too_small_for_a_pooled_level(size, stride):
    message = rf'too small for a level of stride {stride}: .* leave {stride} out of `out_strides`'
    with pytest.raises(ValueError, match=message):
        build()(maps(size, 128))
