import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.backbones import HiViT
from itpn_mm.checkpoint import inspect, remap
from itpn_mm.checkpoint.architecture import explain_mismatch
from itpn_mm.necks import TransformerPyramidNeck
from tests.golden import INDEX, under

from .models import authors_state

KEYS = Path(__file__).parents[1] / 'data' / 'keys'

LARGE = dict(arch='large')
BLOCK = dict(rel_pos_bias='block')
SCALE = dict(layer_scale_init_value=0.1)
SEG = dict(rel_pos_bias='block', img_size=512)
PIXEL_PARTS, CLIP_PARTS = ({'decoder', 'head'}, {'decoder', 'head', 'aux_head', 'mask_token'})
CLASSIFIER_PARTS = {'neck', 'head'}

# table -> arguments of the backbone, depth of the pyramid, further parts of the file
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


def on_meta(cls, *args, **kwargs) -> torch.nn.Module:
    """Build a model without memory."""
    with torch.device('meta'):
        return cls(*args, **kwargs)


def read_table(name: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((KEYS / f'{name}.json').read_text())
    return {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_every_table_is_tested():
    assert {path.stem for path in KEYS.glob('*.json')} == set(MODELS)


@pytest.mark.parametrize('name', MODELS)
def test_table_maps_onto_the_model(name):
    backbone_kwargs, depth, parts = MODELS[name]
    table = read_table(name)
    state, report = remap(table)

    assert report.layout == 'authors'
    assert report.unexplained == []
    assert set(report.dropped) == {'relative_position_index'} & set(table)
    assert len(state) == len(table) - len(report.dropped)

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


@pytest.mark.parametrize('name', MODELS)
def test_table_fits_its_model_only(name):
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


@pytest.mark.parametrize(
    'name', [n for n, info in INDEX.items() if 'kwargs' in info and 'embed_dim' in info['kwargs']]
)
def test_fixture_is_explained(name):
    """Variants that no released file has: F equal to E, two levels, relative positions."""
    state = authors_state(name)
    new, report = remap(state)
    assert not report.unexplained
    assert len(new) + len(report.dropped) == len(state) == len(report.renamed | report.dropped)
    for old, key in report.renamed.items():
        assert new[key] is state[old]


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
        grid=(16, 16),
        layer_scale=True,
        rel_pos_bias='block',
        rel_pos_shape=(961, 12),
    )
    assert found['neck'] == dict(
        out_channels=256,
        in_channels={4: 192, 8: 384, 16: 768},
        depth={4: 1, 8: 1},
        mlp_ratio=4.0,
        bias=False,
        levels=(4, 8, 16),
    )
