import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import remap
from itpn_mm.checkpoint.architecture import inspect
from itpn_mm.checkpoint.mismatch import explain_mismatch
from itpn_mm.necks import TransformerPyramidNeck
from tests.golden import INDEX, under

from .models import KEYS, authors_state, fast_pretraining, read_table

LARGE = dict(arch='large')
BLOCK = dict(rel_pos_bias='block')
SCALE = dict(layer_scale_init_value=0.1)
SEG = dict(rel_pos_bias='block', img_size=512)
PIXEL_PARTS, CLIP_PARTS = ({'decoder', 'head'}, {'decoder', 'head', 'aux_head', 'mask_token'})
CLASSIFIER_PARTS = {'neck', 'head'}

# table of iTPN -> arguments of the backbone, depth of the pyramid, further parts of the file
MODELS = {
    'itpn_pixel_base_pretrain': ({}, 2, PIXEL_PARTS),
    'itpn_pixel_large_pretrain': (LARGE, 2, PIXEL_PARTS),
    'itpn_pixel_base_finetune': (BLOCK, None, CLASSIFIER_PARTS),
    'itpn_pixel_large_finetune': (BLOCK | LARGE, None, CLASSIFIER_PARTS),
    'itpn_clip_base_finetune': (BLOCK | SCALE, None, CLASSIFIER_PARTS),
    'itpn_clip_large_finetune': (BLOCK | SCALE | LARGE, None, CLASSIFIER_PARTS),
    'clip_tpn_base_3324_patch16_224_pretrain_default': (BLOCK, 1, CLIP_PARTS),
    'clip_tpn_base_3324_patch16_224_pretrain_teacher512': (BLOCK | SCALE, 1, CLIP_PARTS),
    'clip_tpn_base_3324_patch16_224_pretrain_teacher768': (BLOCK | SCALE, 1, CLIP_PARTS),
    'clip_tpn_large_2240_patch16_224_pretrain_teacher512': (BLOCK | SCALE | LARGE, 1, CLIP_PARTS),
    'clip_tpn_large_2240_patch16_224_pretrain_teacher768': (BLOCK | SCALE | LARGE, 1, CLIP_PARTS),
    'clip_tpn_large_2240_patch16_256_pretrain_teacher768': (
        BLOCK | SCALE | LARGE | dict(img_size=256),
        1,
        CLIP_PARTS,
    ),
    'det_itpn_pixel_base': ({}, 1, set()),
    'det_itpn_clip_base': (SCALE, 1, set()),
    'det_itpn_clip_large': (SCALE | LARGE | dict(rel_pos_bias='decomposed'), 1, set()),
    'seg_itpn_pixel_base': (SEG, 2, set()),
    'seg_itpn_pixel_large': (SEG | LARGE, 2, set()),
    'seg_itpn_clip_base': (SEG | SCALE, 2, set()),
    'seg_itpn_clip_large': (SEG | SCALE | LARGE, 2, set()),
}
# table of Fast-iTPN, a classifier -> arguments of the backbone
FAST_MODELS = {
    **{
        f'fast_itpn_{arch}_{kind}': dict(arch=arch, img_size=size)
        for arch, kind, size in (
            *((arch, 'default', 224) for arch in ('tiny', 'small', 'base', 'large')),
            *((arch, 'finetune_224', 224) for arch in ('tiny', 'small', 'base')),
            *((arch, 'finetune_384', 384) for arch in ('tiny', 'small')),
            *((arch, 'finetune_512', 512) for arch in ('tiny', 'small', 'base')),
            ('large', 'finetune_256', 256),
            ('large', 'finetune_640', 640),
        )
    },
    'fast_itpn_base_opt_init0': dict(layer_scale_init_value=None),
    'fast_itpn_base_opt_cls': dict(cls_token=True),
    'fast_itpn_base_opt_cls_relpos': dict(cls_token=True, rel_pos_bias='block'),
    'fast_itpn_base_opt_cls_sharedrelpos': dict(cls_token=True, rel_pos_bias='shared'),
    'fast_itpn_base_opt_cls_shareddecoupled': dict(cls_token=True, rel_pos_bias='decoupled'),
    'fast_itpn_base_opt_noabspos': dict(use_abs_pos_emb=False),
}
# what the published models have, in millions
FAST_MILLIONS = dict(tiny=24.22, small=39.90, base=84.83, large=312.02)


def on_meta(cls, *args, **kwargs) -> torch.nn.Module:
    """Build a model without memory."""
    with torch.device('meta'):
        return cls(*args, **kwargs)


def num_values(state) -> int:
    """Values of a state dict, without the indices that models compute."""
    return sum(tensor.numel() for key, tensor in state.items() if not key.endswith('_index'))


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@pytest.mark.checklist('parity')
def test_every_table_of_keys_is_tested(record_figure):
    assert {path.stem for path in KEYS.glob('*.json')} == {*MODELS, *FAST_MODELS}
    assert len(MODELS) + len(FAST_MODELS) == 39
    record_figure('layouts of released files', len(MODELS) + len(FAST_MODELS), '= 39')


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('name', MODELS)
def test_keys_map_onto_the_model(name):
    backbone_kwargs, depth, parts = MODELS[name]
    table = read_table(name)
    state, report = remap(table)

    assert report.layout == 'authors'
    assert report.unexplained == []
    assert set(report.dropped) == {'relative_position_index'} & set(table)
    assert len(state) == len(table) - len(report.dropped)
    assert num_values(state) == num_values(table)

    backbone = on_meta(HiViT, **backbone_kwargs)
    expected, found = shapes(backbone.state_dict()), shapes(under(state, 'backbone.'))
    if name.startswith('seg'):  # 196 positions whatever the size of the image: resized on loading
        assert found.pop('pos_embed') == (1, 196, backbone.embed_dims)
        expected.pop('pos_embed')
    assert found == expected

    if depth is None:
        assert set(under(state, 'neck.')) == {'norm.weight', 'norm.bias'}
    else:
        channels = tuple(backbone.embed_dims // n for n in (4, 2, 1))
        neck = on_meta(TransformerPyramidNeck, channels, depth=depth)
        assert shapes(under(state, 'neck.')) == shapes(neck.state_dict())
    known = {'backbone', 'neck'} if depth else {'backbone'}
    assert {key.split('.')[0] for key in state} - known == parts


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('name', FAST_MODELS)
def test_keys_map_onto_the_fast_model(name):
    table = read_table(name)
    state, report = remap(table)
    assert report.layout == 'authors' and not report.unexplained
    assert set(report.dropped) == {key for key in table if key.endswith('_index')}
    assert num_values(state) == num_values(table)
    backbone = on_meta(FastiTPN, **FAST_MODELS[name])
    assert shapes(under(state, 'backbone.')) == shapes(backbone.state_dict())
    norm = 'pre_norm' if name.endswith('default') else 'norm'
    assert set(under(state, 'neck.')) == {f'{norm}.weight', f'{norm}.bias'}
    assert set(under(state, 'head.')) == {'fc.weight', 'fc.bias'}
    if name.endswith('default'):
        millions = FAST_MILLIONS[FAST_MODELS[name]['arch']]
        assert num_values(state) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('name', [*MODELS, *FAST_MODELS])
def test_keys_become_themselves_again(name):
    table = read_table(name)
    state, _ = remap(table)
    again, report = remap(state, to='authors')
    assert shapes(again) == shapes(table) and not report.unexplained
    assert set(report.created) == {key for key in table if key.endswith('_index')}
    assert shapes(remap(again)[0]) == shapes(state)


@pytest.mark.parametrize('name', MODELS)
def test_keys_fit_their_model_only(name):
    """The large files are refused by a base model, with the argument to change; and vice versa."""
    backbone_kwargs, _, _ = MODELS[name]
    state = under(remap(read_table(name))[0], 'backbone.')
    model = on_meta(HiViT, **backbone_kwargs).state_dict()
    assert explain_mismatch('backbone', state, model, 'HiViT') is None

    other = 'base' if backbone_kwargs.get('arch') == 'large' else 'large'
    model = on_meta(HiViT, **{**backbone_kwargs, 'arch': other}).state_dict()
    message = explain_mismatch('backbone', state, model, 'HiViT')
    arch = HiViT.arch_zoo[backbone_kwargs.get('arch', 'base')]
    assert f'embed_dims={arch["embed_dims"]}, depths={arch["depths"]}' in message
    assert 'set backbone.arch to one with embed_dims=' in message


WITH_WEIGHTS = [n for n, info in INDEX.items() if 'embed_dim' in info.get('kwargs', {})]


@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_fixture_is_explained(name):
    """Variants that no released file has: F equal to E, two levels, relative positions."""
    state = authors_state(name)
    new, report = remap(state)
    assert not report.unexplained
    assert len(state) == len(report.renamed | report.dropped)
    assert set(report.renamed.values()) == set(new)
    assert num_values(new) == num_values(state)
    if INDEX[name]['kind'] != 'fast_cls':  # names change there, and nothing else
        for old, key in report.renamed.items():
            assert new[key] is state[old]


@pytest.mark.checklist('parity')
@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_fixture_becomes_itself_again(name):
    """Bit for bit, and with the indices of relative positions that the reference had computed."""
    state = authors_state(name)
    again, report = remap(remap(state)[0], to='authors')
    assert not report.unexplained
    if 'rect_cls_relpos' in name:  # a joint table does not tell the sides of its grid
        state = {key: tensor for key, tensor in state.items() if not key.endswith('_index')}
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(again[key], tensor) and again[key].dtype == tensor.dtype, key


def test_names_of_a_pixel_file():
    _, report = remap(read_table('itpn_pixel_base_pretrain'))
    expected = {
        'absolute_pos_embed': 'backbone.pos_embed',
        'blocks.2.mlp.fc1.weight': 'backbone.stages.0.2.mlp.fc1.weight',
        'blocks.3.reduction.weight': 'backbone.merges.0.reduction.weight',
        'blocks.4.norm2.bias': 'backbone.stages.1.0.norm2.bias',
        'blocks.7.norm.weight': 'backbone.merges.1.norm.weight',
        'blocks.31.attn.qkv.bias': 'backbone.stages.2.23.attn.qkv.bias',
        'align_dim_16tofpn.bias': 'neck.laterals.p16.bias',
        'align_dim_16to8.weight': 'neck.laterals.p8.weight',
        'align_dim_8to4.weight': 'neck.laterals.p4.weight',
        'split_16to8.reduction.weight': 'neck.splits.p8.expand.weight',
        'block_8to4.1.mlp.fc2.bias': 'neck.blocks.p4.1.mlp.fc2.bias',
        'fpn_modules.0.norm2.weight': 'neck.outputs.p16.norm2.weight',
        'mask_token': 'decoder.mask_token',
        'decoder_embed.2.0.weight': 'decoder.embeds.p4.norm.weight',
        'decoder_embed.0.1.bias': 'decoder.embeds.p16.proj.bias',
        'decoder_blocks.7.attn.proj.weight': 'decoder.blocks.7.attn.proj.weight',
        'decoder_norm.weight': 'decoder.norm.weight',
        'decoder_pred.weight': 'head.pred.weight',
    }
    assert expected.items() <= report.renamed.items()


def test_names_of_a_clip_file():
    table = read_table('clip_tpn_base_3324_patch16_224_pretrain_teacher512')
    _, report = remap(table)
    expected = {
        'mask_token': 'mask_token',
        'blocks.8.gamma_1': 'backbone.stages.2.0.ls1.gamma',
        'blocks.0.gamma_2': 'backbone.stages.0.0.ls2.gamma',
        'blocks.9.attn.relative_position_bias_table': 'backbone.stages.2.1.attn.rel_pos.table',
        'norm.weight': 'decoder.norm.weight',
        'lm_head.bias': 'head.pred.bias',
        'norm_cls.weight': 'aux_head.norm.weight',
        'lm_cls_head.weight': 'aux_head.pred.weight',
        'cls_pt_layers.1.attn.relative_position_bias_table': 'aux_head.blocks.1.attn.rel_pos.table',
    }
    assert expected.items() <= report.renamed.items()


def test_names_of_a_fast_file():
    table = read_table('fast_itpn_base_opt_cls_sharedrelpos')
    _, report = remap(table)
    at = 'backbone.stages.2.0'
    expected = {
        'pos_embed': 'backbone.pos_embed',
        'cls_token': 'backbone.cls_token',
        'blocks.0.mlp.ffn_ln.weight': 'backbone.stages.0.0.mlp.norm.weight',
        'blocks.3.reduction.bias': 'backbone.merges.0.reduction.bias',
        'blocks.8.attn.q_proj.weight': f'{at}.attn.qkv.weight',
        'blocks.8.attn.k_proj.weight': f'{at}.attn.qkv.weight',
        'blocks.8.attn.v_proj.weight': f'{at}.attn.qkv.weight',
        'blocks.8.attn.q_bias': f'{at}.attn.qkv.q_bias',
        'blocks.8.mlp.w1.bias': f'{at}.mlp.fc1.bias',
        'blocks.8.mlp.w2.bias': f'{at}.mlp.fc1.bias',
        'blocks.8.mlp.w3.weight': f'{at}.mlp.fc2.weight',
        'blocks.8.gamma_1': f'{at}.ls1.gamma',
        'rel_pos_bias.relative_position_bias_table': 'backbone.rel_pos.table',
    }
    assert expected.items() <= report.renamed.items()
    assert 'rel_pos_bias.relative_position_index' in report.dropped


def test_tensors_of_a_fast_file():
    """What is joined, and the order within merges, by hand."""
    state = authors_state('g05_fast_cls_meanpool')
    new, _ = remap(state)
    at = 'backbone.stages.2.0'
    for ours, parts in (
        ('attn.qkv.weight', ('attn.q_proj', 'attn.k_proj', 'attn.v_proj')),
        ('mlp.fc1.weight', ('mlp.w1', 'mlp.w2')),
    ):
        rows = torch.cat([state[f'blocks.4.{part}.weight'] for part in parts])
        assert torch.equal(new[f'{at}.{ours}'], rows)
    conv, merge = state['blocks.1.reduction.weight'], new['backbone.merges.0.reduction.weight']
    c = conv.shape[1]
    for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1)):
        start = (2 * dx + dy) * c
        assert torch.equal(merge[:, start : start + c], conv[:, :, dy, dx])


@pytest.mark.parametrize('conv', [False, True])
def test_fast_pretraining_file(conv):
    table = fast_pretraining(conv)
    state, report = remap(table)
    assert not report.unexplained and num_values(state) == num_values(table)
    neck = TransformerPyramidNeck((8, 16, 32), 16, depth=1, bias=True)
    neck.load_state_dict(under(state, 'neck.'), strict=True)
    assert {key.split('.')[0] for key in state} == {
        'backbone',
        'neck',
        'mask_token',
        'decoder',
        'head',
    }
    assert torch.equal(state['decoder.norm.bias'], table['norm.bias'])
    again = remap(state, to='authors')[0]
    assert again.keys() == table.keys()
    for key, tensor in table.items():  # written with convolutions, whatever it was
        assert torch.equal(again[key].flatten(), tensor.flatten())
        assert again[key].shape == tensor.shape or not conv


def test_a_wide_convolution_is_no_linear_layer():
    state = fast_pretraining(conv=True)
    state['align_dim_16to8.weight'] = torch.zeros(16, 16, 3, 3)
    with pytest.raises(
        ValueError, match=r'`neck\.laterals\.p8\.weight` cannot .* \(16, 16, 3, 3\)'
    ):
        remap(state)


def test_missing_part_of_a_joined_tensor():
    state = authors_state('g05_fast_cls_meanpool')
    state.pop('blocks.4.attn.k_proj.weight')
    with pytest.raises(ValueError, match=r'lacks `blocks\.4\.attn\.k_proj\.weight`, a part of'):
        remap(state)


def test_what_the_authors_have_not():
    state = remap(authors_state())[0]
    state |= {'teacher.steps': torch.zeros(1), 'mfm_head.projs.p4.bias': torch.zeros(1)}
    new, report = remap(state, to='authors')
    assert new.keys() == authors_state().keys() and not report.unexplained
    assert set(report.dropped) == {'teacher.steps', 'mfm_head.projs.p4.bias'}
    token = 'backbone.acceleration.gathering_token'
    new, report = remap({**state, token: torch.zeros(1, 1, 32)}, to='authors')
    assert new.keys() == authors_state().keys() and not report.unexplained
    assert report.dropped[token] == "acceleration, which the authors' models do not have"
    _, report = remap({**state, 'backbone.extra': torch.zeros(1)}, to='authors')
    assert report.unexplained == ['backbone.extra']
    with pytest.raises(ValueError, match=r'a\.pth: cannot become a file of the authors, .* 1 of'):
        report.raise_if_unexplained('a.pth')


def test_to_another_layout():
    with pytest.raises(ValueError, match=r"`to` must be 'ours' or 'authors', but got 'timm'"):
        remap({}, to='timm')


def test_authors_to_authors_loses_its_wrapper():
    state = authors_state('b1_pixel_cls_rpe')
    again, report = remap({f'module.{key}': tensor for key, tensor in state.items()}, to='authors')
    assert report.layout == 'authors' and again.keys() == state.keys()


def test_parts_saved_alone_become_the_authors():
    ours = remap(authors_state())[0]
    for part in ('backbone.', 'neck.'):
        found = remap(under(ours, part), to='authors')[0]
        kept = {key: tensor for key, tensor in ours.items() if key.startswith(part)}
        assert found.keys() == remap(kept, to='authors')[0].keys() < authors_state().keys()


def test_heads_beside_the_backbone_become_the_authors():
    state = {f'backbone.{key}': tensor for key, tensor in authors_state().items()}
    state['roi_head.bbox_head.fc_cls.bias'] = torch.zeros(1)
    assert remap(remap(state)[0], to='authors')[0].keys() == state.keys()


def test_names_of_downstream_files():
    _, report = remap(read_table('itpn_pixel_base_finetune'))
    assert report.renamed['fc_norm.bias'] == 'neck.norm.bias'
    assert report.renamed['head.weight'] == 'head.fc.weight'
    _, report = remap(read_table('det_itpn_clip_large'))
    assert report.renamed['blocks.6.attn.rel_pos_h'] == 'backbone.stages.2.0.attn.rel_pos.table_h'


@pytest.mark.parametrize('wrapper', ['module.', 'encoder.', 'backbone.', 'module.backbone.'])
def test_wrappers_are_stripped(wrapper):
    state = authors_state()
    expected = remap(state)[0]
    found, report = remap({wrapper + key: tensor for key, tensor in state.items()})
    assert not report.unexplained
    assert found.keys() == expected.keys()


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_heads_beside_the_backbone_stay(wrapper):
    state = {f'{wrapper}backbone.{key}': tensor for key, tensor in authors_state().items()}
    heads = ('rpn_head.rpn_conv.weight', 'roi_head.bbox_head.fc_cls.bias', 'decode_head.a.weight')
    state |= {wrapper + head: torch.zeros(1) for head in heads}
    found, report = remap(state)
    assert not report.unexplained
    assert set(heads) < set(found)
    assert 'backbone.pos_embed' in found


@pytest.mark.parametrize(
    'stranger',
    ['blocks.0.mlp.ffn_ln.weight', 'blocks.0.norm3.weight', 'cls_token', 'x.head.weight'],
)
def test_unknown_name_is_reported(stranger):
    state, report = remap({**authors_state(), stranger: torch.zeros(1)})
    assert report.unexplained == [stranger]
    assert len(state) == len(authors_state())
    with pytest.raises(
        ValueError, match=rf'a\.pth: looks like .* 1 of its names are unknown: {stranger};'
    ):
        report.raise_if_unexplained('a.pth')


def test_two_names_for_one_are_refused():
    with pytest.raises(ValueError, match=r'two names .* become `backbone\.pos_embed`'):
        remap({**authors_state(), 'module.absolute_pos_embed': torch.zeros(1)})


def test_number_of_merges():
    state = authors_state()
    state = {key: tensor for key, tensor in state.items() if not key.startswith('blocks.3.')}
    with pytest.raises(ValueError, match=r'must hold 2 merges, but there are 1: \[1\]'):
        remap(state)


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_our_layout_is_unchanged(wrapper):
    ours = remap(authors_state())[0]
    found, report = remap({wrapper + key: tensor for key, tensor in ours.items()})
    assert report.layout == 'itpn_mm'
    assert found.keys() == ours.keys()
    assert all(found[key] is ours[key] for key in ours)


def test_other_layouts_are_unchanged():
    state = {'layer1.0.conv1.weight': torch.zeros(1), 'blocks.0.attn.qkv.weight': torch.zeros(1)}
    found, report = remap(state)
    assert found == state and not report.unexplained
    assert report.layout == 'unknown'
    assert remap({})[0] == {}


def authors_names(depths, layer_scale, relative_position):
    """Names of the authors' trunk as their constructor makes them, with the layer of each."""
    yield 'absolute_pos_embed', 'pos'
    index = 0
    for stage, depth in enumerate(depths):
        for i in range(depth):
            branches = ('norm1', 'attn.qkv', 'attn.proj') if stage == 2 else ()
            for layer in (*branches, 'norm2', 'mlp.fc1', 'mlp.fc2'):
                yield f'blocks.{index}.{layer}.weight', f'stages.{stage}.{i}.{layer}'
                yield f'blocks.{index}.{layer}.bias', f'stages.{stage}.{i}.{layer}'
            if layer_scale:
                yield f'blocks.{index}.gamma_2', f'stages.{stage}.{i}.ls2'
            if stage == 2 and relative_position:
                yield (
                    f'blocks.{index}.attn.relative_position_bias_table',
                    f'stages.2.{i}.attn.rel_pos',
                )
            index += 1
        if stage < 2:
            yield f'blocks.{index}.norm.weight', f'merges.{stage}.norm'
            yield f'blocks.{index}.reduction.weight', f'merges.{stage}.reduction'
            index += 1


depth = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(st.tuples(depth, depth, depth), st.booleans(), st.booleans(), st.randoms())
def test_any_depth_maps_one_to_one(depths, layer_scale, relative_position, random):
    places = list(authors_names(depths, layer_scale, relative_position))
    random.shuffle(places)
    state = {name: torch.tensor(i) for i, (name, _) in enumerate(places)}
    found, report = remap(state)

    assert not report.unexplained and not report.dropped
    assert sorted(tensor.item() for tensor in found.values()) == list(range(len(places)))
    for name, place in places[:]:
        new = report.renamed[name]
        assert found[new] is state[name]
        assert place == 'pos' or new.startswith(f'backbone.{place}.')


def test_large_and_base_are_told_apart():
    state = remap(read_table('clip_tpn_large_2240_patch16_256_pretrain_teacher768'))[0]
    found = inspect(state)
    assert found['backbone'] == dict(
        type='HiViT',
        embed_dims=768,
        depths=(2, 2, 40),
        num_heads=12,
        in_channels=3,
        patch_size=16,
        patch_norm=True,
        stem_mlp_ratio=3.0,
        mlp_ratio=4.0,
        qkv_bias=True,
        use_abs_pos_emb=True,
        cls_token=False,
        sub_norm=False,
        swiglu=False,
        grid=(16, 16),
        layer_scale=True,
        rel_pos_bias='block',
        rel_pos_shape=(961, 12),
        acceleration=None,
    )
    assert found['neck'] == dict(
        out_channels=256,
        in_channels={4: 192, 8: 384, 16: 768},
        depth={4: 1, 8: 1},
        mlp_ratio=4.0,
        bias=False,
        levels=(4, 8, 16),
    )
