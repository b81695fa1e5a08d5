"""HiViT: shapes, options, training, bad input (the masked path: test_hivit_masked.py)."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from itpn_mm.backbones import HiViT
from itpn_mm.layers import resize_pos_embed, sincos_pos_embed
from itpn_mm.layers.block import DropPath
from itpn_mm.necks import TransformerPyramidNeck
from tests.checklist import note_difference

TINY = dict(embed_dims=16, depths=(1, 1, 2), num_heads=2)
REL_POS = (None, 'block', 'shared', 'decomposed')


def build(arch=None, **kwargs):
    """A small model whose relative positions are not zero as they are at the start."""
    torch.manual_seed(0)
    model = HiViT(arch or TINY, **{'img_size': 64, **kwargs})
    for name, parameter in model.named_parameters():
        if 'rel_pos' in name:
            torch.nn.init.normal_(parameter)
    return model


# Shapes


@pytest.mark.checklist('fuzz-sizes')
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(16, 96),
    width=st.integers(16, 96),
    rel_pos=st.sampled_from(REL_POS),
)
def test_any_image_size(height, width, rel_pos):
    model = build(rel_pos_bias=rel_pos).eval()
    image = torch.randn(1, 3, height, width)
    with torch.no_grad():
        maps = model(image)
        padded = model(F.pad(image, (0, -width % 16, 0, -height % 16)))
    h, w = -(-height // 16), -(-width // 16)
    assert [tuple(x.shape) for x in maps] == [
        (1, 4, 4 * h, 4 * w),
        (1, 8, 2 * h, 2 * w),
        (1, 16, h, w),
    ]
    for x, y in zip(maps, padded):
        assert x.isfinite().all()
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    'patch_size, strides', [(16, (4, 8, 16)), (8, (2, 4, 8)), (32, (8, 16, 32))]
)
def test_patch_size_sets_the_strides(patch_size, strides):
    model = build(patch_size=patch_size)
    assert model.strides == strides
    maps = model(torch.randn(1, 3, 64, 96))
    assert [x.shape[2:] for x in maps] == [(64 // s, 96 // s) for s in strides]


@pytest.mark.parametrize('channels', [1, 4])
def test_in_channels(channels):
    assert build(in_channels=channels)(torch.randn(1, channels, 32, 32))[0].shape == (1, 4, 8, 8)


@pytest.mark.parametrize('indices', [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_out_indices(indices):
    """Early stages can feed a neck (mmpretrain's HiViT crashes for any but the last)."""
    everything, some = build().eval(), build(out_indices=indices).eval()
    assert some.strides == tuple((4, 8, 16)[i] for i in indices)
    assert some.out_channels == tuple((4, 8, 16)[i] for i in indices)
    image = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps, expected = some(image), everything(image)
    assert len(maps) == len(indices)
    for x, i in zip(maps, indices):
        assert torch.equal(x, expected[i])


@pytest.mark.checklist('equivalences')
def test_an_image_gives_the_same_alone_and_in_a_batch():
    model, images = build(rel_pos_bias='block').eval(), torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    for x, y in zip(together, alone):
        torch.testing.assert_close(x[1:2], y)


def test_images_may_lie_in_memory_in_any_order():
    model, image = build().eval(), torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        for x, y in zip(model(image), model(image.contiguous(memory_format=torch.channels_last))):
            torch.testing.assert_close(x, y)


# Options


@pytest.mark.checklist('no-shared-state')
def test_names_of_the_parameters_are_kept():
    """Files written by one version must load in the next."""
    block = ['norm2.weight', 'norm2.bias', 'ls2.gamma'] + [
        f'mlp.{fc}.{kind}' for fc in ('fc1', 'fc2') for kind in ('weight', 'bias')
    ]
    attention = ['norm1.weight', 'norm1.bias', 'ls1.gamma', 'attn.rel_pos.table'] + [
        f'attn.{layer}.{kind}' for layer in ('qkv', 'proj') for kind in ('weight', 'bias')
    ]
    expected = {'pos_embed'}
    expected |= {f'patch_embed.{m}.{k}' for m in ('proj', 'norm') for k in ('weight', 'bias')}
    expected |= {
        f'merges.{i}.{k}' for i in (0, 1) for k in ('norm.weight', 'norm.bias', 'reduction.weight')
    }
    expected |= {f'stages.{i}.0.{name}' for i in (0, 1, 2) for name in block}
    expected |= {f'stages.2.0.{name}' for name in attention}
    arch = dict(embed_dims=16, depths=(1, 1, 1), num_heads=2)
    state = build(arch, rel_pos_bias='block', layer_scale_init_value=0.1).state_dict()
    assert state.keys() == expected
    shared = build(arch, rel_pos_bias='shared').state_dict().keys()
    assert {k for k in shared if 'rel_pos' in k} == {'rel_pos.table'}
    decomposed = build(arch, rel_pos_bias='decomposed').state_dict().keys()
    assert {k for k in decomposed if 'rel_pos' in k} == {
        'stages.2.0.attn.rel_pos.table_h',
        'stages.2.0.attn.rel_pos.table_w',
    }


def test_options_reach_the_layers():
    model = build(
        stem_mlp_ratio=2.0,
        mlp_ratio=5.0,
        qkv_bias=False,
        patch_norm=False,
        use_abs_pos_emb=False,
        norm_eps=1e-5,
        drop_rate=0.25,
    )
    assert [stage[0].mlp.fc1.out_features for stage in model.stages] == [8, 16, 80]
    assert model.stages[2][0].attn.qkv.bias is None
    assert isinstance(model.patch_embed.norm, torch.nn.Identity)
    assert model.pos_embed is None
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms and {m.eps for m in norms} == {1e-5}
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert model(torch.randn(1, 3, 32, 32))[2].isfinite().all()


def test_initialisation():
    model = HiViT(dict(embed_dims=256, depths=(1, 1, 1), num_heads=4), img_size=(64, 96))
    assert torch.equal(model.pos_embed, sincos_pos_embed((4, 6), 256))
    assert model.pos_embed.requires_grad
    weight = model.stages[2][0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.stages[2][0].mlp.fc1.bias.any()


@pytest.mark.parametrize('offset', [0.0, 0.1])
def test_positions_are_resampled_for_another_grid(offset):
    model = build(interpolate_offset=offset).eval()
    image, other = torch.randn(1, 3, 48, 80), build(img_size=(48, 80)).eval()
    other.load_state_dict(
        {
            **model.state_dict(),
            'pos_embed': resize_pos_embed(model.pos_embed, (4, 4), (3, 5), offset),
        }
    )
    with torch.no_grad():
        assert torch.equal(model(image)[2], other(image)[2])


def test_the_native_grid_takes_the_table_as_it_is():
    """Also a square grid of as many patches as a rectangular native grid must not."""
    model, seen = build(img_size=(32, 128)).eval(), []
    model.stages[2][0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for size in ((32, 128), (64, 64)):
            model(torch.zeros(1, 3, *size))
    difference = (seen[0] - seen[1]).abs().max()  # all patches of a black image are alike
    assert difference > 1e-3
    spread = (seen[0] - model.pos_embed).std(1)
    assert spread.max() < 1e-6


@pytest.mark.parametrize('rel_pos', REL_POS[1:])
def test_relative_positions_work_at_other_sizes(rel_pos):
    """In mmpretrain's HiViT they fail at any size but that of the constructor."""
    model = build(rel_pos_bias=rel_pos)
    for size in ((64, 64), (32, 80), (96, 48)):
        model(torch.randn(1, 3, *size))[2].sum().backward()


@pytest.mark.checklist('parity')
def test_sizes_of_the_zoo_equal_the_released_models():
    """Numbers of parameters of the authors' detection and segmentation backbones."""
    released = [
        ('base', {}, dict(depth=1), 81_552_000),
        ('base', dict(layer_scale_init_value=0.1), dict(depth=1), 81_577_728),
        (
            'large',
            dict(layer_scale_init_value=0.1, rel_pos_bias='decomposed'),
            dict(depth=1, in_channels=(192, 384, 768)),
            291_599_296,
        ),
        ('base', {}, dict(depth=2), 83_366_208 - 24 * 63**2 * 8),
        (
            'large',
            dict(rel_pos_bias='block', img_size=512),
            dict(depth=2, in_channels=(192, 384, 768)),
            294_355_744 + (32**2 - 14**2) * 768,  # theirs keeps a table of 14 x 14 positions
        ),
    ]
    for arch, backbone_options, neck_options, expected in released:
        with torch.device('meta'):
            parts = HiViT(arch, **backbone_options), TransformerPyramidNeck(**neck_options)
        assert sum(p.numel() for part in parts for p in part.parameters()) == expected


def test_every_name_of_the_zoo_builds():
    for arch, sizes in HiViT.arch_zoo.items():
        with torch.device('meta'):
            model = HiViT(arch)
        assert tuple(map(len, model.stages)) == sizes['depths']
        assert model.out_channels[2] == sizes['embed_dims']


@pytest.mark.checklist('no-shared-state')
def test_building_one_model_leaves_another_alone():
    """In mmpretrain, building a 'tiny' changes which blocks an existing 'base' returns."""
    zoo = copy.deepcopy(HiViT.arch_zoo)
    with torch.device('meta'):
        base = HiViT('base')
        before = base.out_indices, base.out_channels, base.depths
        HiViT('tiny', out_indices=[1])
        assert (base.out_indices, base.out_channels, base.depths) == before
        assert HiViT('base').out_indices == (0, 1, 2)
    assert HiViT.arch_zoo == zoo
    arch = dict(TINY)
    build(arch)
    assert arch == TINY


# Training


@pytest.mark.parametrize('rel_pos', REL_POS)
def test_every_parameter_gets_a_gradient(rel_pos):
    model = build(rel_pos_bias=rel_pos, layer_scale_init_value=0.1)
    sum(x.square().sum() for x in model(torch.randn(1, 3, 32, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.checklist('equivalences')
@pytest.mark.parametrize('rel_pos', REL_POS)
def test_activation_checkpointing_changes_nothing(rel_pos):
    image, results = torch.randn(2, 3, 32, 64), []
    for with_cp in (False, True):
        model = build(rel_pos_bias=rel_pos, with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.1)
        torch.manual_seed(1)  # the same paths and units are dropped, also in the recomputation
        maps = model(image)
        sum(x.square().sum() for x in maps).backward()
        results.append((maps, {k: p.grad for k, p in model.named_parameters()}))
    note_difference('checkpointing, with gradients', results[1][0], results[0][0], '<= 1e-5')
    for x, y in zip(results[0][0], results[1][0]):
        assert torch.equal(x, y)
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name


def test_activation_checkpointing_recomputes_every_block():
    model = build(with_cp=True)
    blocks = [block for stage in model.stages for block in stage]
    counts = [0] * len(blocks)

    def count(i):
        def hook(*_):
            counts[i] += 1

        return hook

    for i, block in enumerate(blocks):
        block.register_forward_pre_hook(count(i))
    maps = model(torch.randn(1, 3, 32, 32))
    assert counts == [1] * len(blocks)
    sum(x.sum() for x in maps).backward()
    assert counts == [2] * len(blocks)


FROZEN = {  # frozen_stages -> prefixes of what does not train
    -1: (),
    0: ('patch_embed.',),
    1: ('patch_embed.', 'stages.0.'),
    2: ('patch_embed.', 'stages.0.', 'stages.1.', 'merges.0.'),
    3: ('',),
}


@pytest.mark.parametrize('frozen', FROZEN)
@pytest.mark.parametrize('rel_pos', [None, 'shared'])
def test_frozen_stages(frozen, rel_pos):
    """mmpretrain's HiViT raises an AttributeError for `frozen_stages=1`."""
    model = build(frozen_stages=frozen, rel_pos_bias=rel_pos, drop_path_rate=0.5, drop_rate=0.1)
    for _ in range(2):  # as built, and after a change of mode
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != name.startswith(FROZEN[frozen]), name
        for name, module in model.named_modules():
            if name and list(module.parameters(recurse=False)):
                assert module.training != f'{name}.'.startswith(FROZEN[frozen]), name
        model.eval()
        assert not any(m.training for m in model.modules())
        assert model.train() is model
    last = model(torch.randn(2, 3, 32, 32))[2]
    assert last.requires_grad == (frozen < 3)
    if frozen < 3:
        last.sum().backward()


@pytest.mark.parametrize('frozen', [0, 1, 2, 3])
def test_frozen_stages_know_no_chance(frozen):
    model = build(frozen_stages=frozen, drop_rate=0.5, drop_path_rate=0.5).train()
    image = torch.randn(2, 3, 32, 32)
    for stage, (x, y) in enumerate(zip(model(image), model(image)), start=1):
        assert torch.equal(x, y) == (stage <= frozen)


def test_drop_path_rises_linearly():
    with torch.device('meta'):
        model = HiViT('base', drop_path_rate=0.05)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.05 * i / 29 for i in range(30)])
    assert {m.rate for m in TransformerPyramidNeck().modules() if isinstance(m, DropPath)} == {0.0}


def test_drop_path_drops_an_image_as_a_whole_in_every_stage():
    torch.manual_seed(0)
    model, seen = build(drop_path_rate=0.9), []
    for stage in model.stages:
        stage[-1].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    for keep in (None, torch.rand(32, 16).argsort(1)[:, :4]):
        seen.clear()
        model.forward_stages(torch.randn(32, 3, 64, 64), keep)
        before, after = seen[2]
        assert (before == after).flatten(1).all(1).any()
        changed = (before != after).any(-1).float().flatten(1).mean(1)
        assert set(changed.tolist()) <= {0.0, 1.0}


@pytest.mark.checklist('amp')
def test_autocast_in_bfloat16():
    for rel_pos in REL_POS:
        model, image = build(rel_pos_bias=rel_pos), torch.randn(2, 3, 48, 64)
        expected = model(image)
        with torch.autocast('cpu', torch.bfloat16):
            maps = model(image)
        sum(x.float().square().sum() for x in maps).backward()
        for x, y in zip(maps, expected):
            assert F.cosine_similarity(x.float().flatten(), y.flatten(), 0) > 0.999
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_model_in_bfloat16_or_double():
    for dtype in (torch.bfloat16, torch.float64):
        for rel_pos in REL_POS:
            model = build(rel_pos_bias=rel_pos).to(dtype)
            maps = model(torch.randn(1, 3, 48, 64, dtype=dtype))
            assert {x.dtype for x in maps} == {dtype}


@pytest.mark.checklist('no-shared-state')
def test_copying_and_pickling():
    model, image = build(rel_pos_bias='block').eval(), torch.randn(1, 3, 32, 32)
    expected = model(image)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for x, y in zip(twin(image), expected):
            assert torch.equal(x, y)
    with torch.no_grad():
        twin.pos_embed.add_(1)
    assert torch.equal(model(image)[2], expected[2])


# Memory


class LargestOutput(TorchDispatchMode):
    """Notes the size of the largest tensor that an operator gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize('rel_pos, quadratic', [(None, False), ('block', True)])
def test_no_quadratic_tensor_without_a_bias(rel_pos, quadratic):
    model = HiViT(TINY, img_size=512, rel_pos_bias=rel_pos)
    length = 32**2
    with LargestOutput() as largest:
        sum(x.sum() for x in model(torch.randn(1, 3, 512, 512))).backward()
    assert (largest.numel >= length**2) == quadratic


def test_maps_are_contiguous():
    """mmcv's operators read memory as (B, C, H, W) whatever the strides say."""
    for x in build()(torch.randn(2, 3, 48, 64)):
        assert x.is_contiguous()


def test_stages_are_channels_last_without_a_copy():
    for x in build().forward_stages(torch.randn(2, 3, 48, 64)):
        assert x.is_contiguous()


# Bad input


@pytest.mark.parametrize(
    'arch, message',
    [
        (
            'huge',
            r"`arch` must be a dict or one of \['base', 'giant', 'large', 'small', 'tiny'\], but "
            r"got 'huge'",
        ),
        (dict(TINY, mlp_ratio=3), r'`arch` must be a name or a dict with exactly the keys'),
        (dict(embed_dims=16), r'`arch` must be a name or a dict with exactly the keys'),
        (24, r'`arch` must be a name or a dict .* but got 24'),
        (
            dict(TINY, depths=(1, 1)),
            r"`arch\['depths'\]` must be three numbers .* but got \(1, 1\)",
        ),
        (dict(TINY, depths=(1, 0, 2)), r"`arch\['depths'\]` must be three numbers of at least 1"),
        (dict(TINY, embed_dims=18), r"`arch\['embed_dims'\]` must be a multiple of 4 .* got 18"),
        (dict(TINY, num_heads=3), r"`arch\['embed_dims'\]` .* of `num_heads`, .* 16 with 3 heads"),
        (dict(TINY, num_heads=0), r"`arch\['num_heads'\]` must be .* at least 1, but got 0"),
        (dict(TINY, embed_dims=0), r"`arch\['embed_dims'\]` must be .* got 0"),
        (dict(TINY, depths=4), r"`arch\['depths'\]` must be three numbers .* but got 4"),
        (dict(TINY, depths=(1, 1, 2.5)), r"`arch\['depths'\]` must be three numbers .* 2.5"),
    ],
)
def test_bad_arch(arch, message):
    with pytest.raises(ValueError, match=message):
        HiViT(arch)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(img_size=100),
            r'`img_size` must be one or two positive multiples of patch_size=16, but got 100',
        ),
        (dict(img_size=0), r'`img_size` .* got 0'),
        (dict(img_size=(64, 64, 64)), r'`img_size` .* got \(64, 64, 64\)'),
        (dict(img_size=(64, 40)), r'`img_size` .* got \(64, 40\)'),
        (dict(img_size=224.0), r'`img_size` .* got 224.0'),
        (dict(img_size='224'), r"`img_size` .* got '?224'?"),
        (dict(patch_size=6), r'`patch_size` must be a positive multiple of 4, but got 6'),
        (dict(patch_size=0), r'`patch_size` must be a positive multiple of 4, but got 0'),
        (
            dict(out_indices=()),
            r'`out_indices` must be rising and out of \(0, 1, 2\), but got \(\)',
        ),
        (dict(out_indices=(0, 3)), r'`out_indices` .* got \(0, 3\)'),
        (dict(out_indices=(2, 1)), r'`out_indices` must be rising .* got \(2, 1\)'),
        (dict(out_indices=(1, 1)), r'`out_indices` must be rising .* got \(1, 1\)'),
        (dict(out_indices=(-1,)), r'`out_indices` .* got \(-1,\)'),
        (dict(out_indices=2), r'`out_indices` .* got 2'),
        (dict(frozen_stages=4), r'`frozen_stages` must be in -1\.\.3, but got 4'),
        (dict(frozen_stages=-2), r'`frozen_stages` must be in -1\.\.3, but got -2'),
        (dict(frozen_stages=True), r'`frozen_stages` must be in -1\.\.3, but got True'),
        (dict(frozen_stages=1.0), r'`frozen_stages` must be in -1\.\.3, but got 1\.0'),
        (dict(rel_pos_bias='joint'), r"`rel_pos_bias` must be one of .*, but got 'joint'"),
        (dict(rel_pos_bias=True), r'`rel_pos_bias` must be one of .*, but got True'),
        (
            dict(rel_pos_bias='decomposed', img_size=(64, 32)),
            r"`rel_pos_bias='decomposed'` needs a square `img_size`, but got \(64, 32\)",
        ),
        (dict(drop_path_rate=1.0), r'`drop_path_rate` must be in \[0, 1\), but got 1.0'),
        (dict(drop_path_rate=-0.1), r'`drop_path_rate` must be in \[0, 1\), but got -0.1'),
        (dict(drop_rate=1.5), r'`drop_rate` must be in \[0, 1\), but got 1.5'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        HiViT(TINY, **options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match='use_rpe'):
        HiViT(TINY, use_rpe=True)
    with pytest.raises(TypeError, match='positional'):
        HiViT(TINY, 224)


@pytest.mark.parametrize('size', [(15, 64), (64, 15), (0, 16)])
def test_an_image_smaller_than_a_patch(size):
    message = (
        rf'images must be at least one patch \(16 x 16 pixels\), but got {size[0]} x {size[1]}'
    )
    with pytest.raises(ValueError, match=message):
        build()(torch.randn(1, 3, *size))


@pytest.mark.parametrize('shape', [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32)])
def test_images_of_other_channels(shape):
    with pytest.raises(ValueError, match=r'images must be \(B, 3, H, W\).*`in_channels`'):
        build()(torch.randn(*shape))
