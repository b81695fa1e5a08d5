"""Released MaskDINO weights: read by the tool, with the config that they fit into."""

import functools
import json
import re
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from itpn_mm.checkpoint import read_checkpoint, remap
from itpn_mm.checkpoint.convert import Checkpoint
from itpn_mm.checkpoint.maskdino import HEADS, POINTS, _rules, from_maskdino
from itpn_mm.checkpoint.model_config import config_text
from itpn_mm.checkpoint.rules import compile_template, fill_template

pytest.importorskip('mmdet')

from ..test_maskdino.golden import (
    DATA,
    PIXEL_DECODER,
    PREDICTOR,
    load,
    state_of,
)

TABLES = sorted(path.stem for path in (DATA / 'keys').glob('*.json'))
assert len(TABLES) == 4
SCOPES = dict(panoptic_head='mmdet', decode_head='mmseg')


def read_table(name: str) -> dict[str, Tensor]:
    """Tensors of the shapes of a released model, of one value, which take no memory."""
    table = json.loads((DATA / 'keys' / f'{name}.json').read_text())
    num_classes = table['predictor']['num_classes']
    shapes = table['keys'] | {'criterion.empty_weight': [num_classes + 1]}
    return {name: torch.ones(1).expand(shape) for name, shape in shapes.items()}


def in_detectron2(name: str) -> str:
    """What detectron2 calls a parameter of mmdet's ResNet."""
    name = name if name.startswith('layer') else f'stem.{name}'
    name = re.sub(r'layer(\d)', lambda m: f'res{int(m[1]) + 1}', name)
    name = name.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
    return 'backbone.' + re.sub(r'bn(\d)', r'conv\1.norm', name)


def resnet50() -> dict[str, Tensor]:
    """A ResNet-50 with the names of detectron2, without memory."""
    with torch.device('meta'):
        names = MODELS.build(dict(type='mmdet.ResNet', depth=50)).state_dict()
    state = {in_detectron2(k): t for k, t in names.items() if 'num_batches_tracked' not in k}
    assert len(state) == 265
    return state


def as_released(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """A model of ours as its authors would have saved it, the finest level first."""
    levels = [k for k in state if re.search(r'input_convs\.\d+\.conv\.weight', k)]
    extra = sum(state[key].shape[-1] > 1 for key in levels)
    rules = [(compile_template(r.ours), r) for r in _rules(False, len(levels), extra)]
    out = {}
    for name, tensor in state.items():
        where, _, bare = name.partition('.')
        if where == part:
            [(match, rule)] = [(m, r) for pattern, r in rules if (m := pattern.fullmatch(bare))]
            theirs = fill_template(rule.authors[0], match.groupdict())
            (out[theirs],) = rule.change.split(tensor, 1)
        elif not name.endswith('num_batches_tracked'):
            out[in_detectron2(bare)] = tensor
    return out


def swin(embed_dims: int, depths: tuple, num_heads: tuple, window_size: int) -> dict[str, Tensor]:
    """Random values with the names and shapes of the original Swin Transformer."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int, bias: bool = True) -> None:
        state[f'{name}.weight'] = torch.randn(shape, generator=generator)
        if bias:
            state[f'{name}.bias'] = torch.randn(shape[0], generator=generator)

    add('patch_embed.proj', embed_dims, 3, 4, 4)
    add('patch_embed.norm', embed_dims)
    for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        width = embed_dims * 2**i
        for j in range(depth):
            block = f'layers.{i}.blocks.{j}'
            add(f'{block}.norm1', width)
            add(f'{block}.norm2', width)
            add(f'{block}.attn.qkv', 3 * width, width)
            add(f'{block}.attn.proj', width, width)
            rows = (2 * window_size - 1) ** 2
            state[f'{block}.attn.relative_position_bias_table'] = torch.randn(rows, heads)
            state[f'{block}.attn.relative_position_index'] = torch.zeros(
                window_size**2, window_size**2, dtype=torch.long
            )
            add(f'{block}.mlp.fc1', 4 * width, width)
            add(f'{block}.mlp.fc2', width, 4 * width)
        if i < 3:
            add(f'layers.{i}.downsample.reduction', 2 * width, 4 * width, bias=False)
            add(f'layers.{i}.downsample.norm', 4 * width)
        add(f'norm{i}', width)
    return {f'backbone.{name}': tensor for name, tensor in state.items()}


def read_config(text: str) -> dict:
    """What a person gets who pastes the text."""
    scope: dict = {}
    exec(text, scope)
    return scope


def build(model: dict) -> nn.Module:
    """The model, without memory."""
    part = next(part for part in SCOPES if part in model)
    pytest.importorskip(SCOPES[part])
    config = Config(dict(model=model)).model
    with (
        DefaultScope.overwrite_default_scope(SCOPES[part]),
        torch.device('meta'),
        # mmdet's Swin Transformer computes numbers with it
        mock.patch('torch.linspace', functools.partial(torch.linspace, device='cpu')),
    ):
        return MODELS.build(config)


@pytest.mark.parametrize('name', TABLES)
def test_printed_config_of_a_released_model(name):
    """It loads strictly: nothing missing, nothing left over."""
    table = json.loads((DATA / 'keys' / f'{name}.json').read_text())
    theirs, wanted = table['predictor'], table['pixel_decoder']
    if 'swinl' in name:
        with torch.device('meta'):
            backbone = swin(192, (2, 2, 18, 2), (6, 12, 24, 48), 12)
    else:
        backbone = resnet50()
    state, report = remap(read_table(name) | backbone)
    assert not report.unexplained
    assert len(report.dropped) == len(table['aliases']) + 1
    assert set(report.dropped.values()) >= {'class weights of the loss, which the config says'}
    counters = [key for key in state if key.endswith('num_batches_tracked')]
    assert report.created == counters and len(counters) == (0 if 'swinl' in name else 53)
    config = read_config(config_text(state, 'a.pth', arguments=report.arguments))
    assert config['load_from'] == 'a.pth'
    model = build(config['model'])
    model.load_state_dict({k: t.to('meta') for k, t in state.items()}, strict=True)

    part = 'panoptic_head' if theirs['two_stage'] else 'decode_head'
    assert type(model).__name__ == ('MaskDINO' if theirs['two_stage'] else 'EncoderDecoder')
    head = getattr(model, part)
    assert head.num_classes == theirs['num_classes']
    assert head.no_object == theirs.get('ce', False)
    assert head.predictor.num_queries == theirs['queries']
    assert head.predictor.double_norm and not head.mask_padding
    assert head.predictor.denoiser is not None
    decoder = head.pixel_decoder
    assert list(decoder.in_channels) == wanted['in_ch']
    assert decoder.num_encoded == len(wanted['in_feats_enc'])
    assert decoder.num_levels == wanted['levels']
    assert len(decoder.layers) == wanted['layers']
    assert len(head.predictor.decoder.layers) == theirs['layers']
    if theirs['two_stage']:
        sizes = [0.05 * 2**i for i in range(wanted['levels'])]
        assert head.predictor.proposal_sizes == tuple(reversed(sizes))  # the finest is the largest
        things = 80 if 'panoptic' in name else theirs['num_classes']
        assert head.num_things_classes == things
        fusion = model.panoptic_fusion_head
        assert (fusion.panoptic_on, fusion.instance_on) == ('panoptic' in name, True)
    else:
        assert head.criterion.loss_cls.class_weight == [1.0] * 150 + [0.1]
    text = Checkpoint('a.pth', state, report).summary()
    host = SCOPES[part]
    assert text.startswith(f"a.pth: the layout of MaskDINO's authors, MaskDINO for {host}")
    assert ("'mask2box' for COCO instances" in text) == theirs['two_stage']


def test_swin_as_mmdet_converts_it():
    """Values, too: the merges of mmdet take their inputs in another order."""
    from mmdet.models.backbones.swin import swin_converter

    backbone = swin(8, (1, 2, 1, 1), (1, 2, 2, 4), 3)
    state, report = from_maskdino(read_table(TABLES[1]) | backbone)
    bare = {name.removeprefix('backbone.'): tensor for name, tensor in backbone.items()}
    expected = swin_converter(bare)
    found = {name: tensor for name, tensor in state.items() if name.startswith('backbone.')}
    assert not report.unexplained and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def released(pixels: str, queries: str) -> dict[str, Tensor]:
    """Weights of two fixtures as one file, with second names and what the loss saves."""
    (pixel_entry, pixel), (entry, predictor) = load(pixels), load(queries)
    state = {PIXEL_DECODER + name: t for name, t in state_of(pixel_entry, pixel).items()}
    state |= {PREDICTOR + name: t for name, t in state_of(entry, predictor).items()}
    assert f'{PREDICTOR}decoder.norm.weight' in state
    return state | {'criterion.empty_weight': torch.ones(entry['kwargs']['num_classes'] + 1)}


LOW2HIGH = ('a2_pixel_4lvl_low2high', 'b2_predictor_twostage_focal')
HIGH2LOW = ('a1_pixel_3lvl_high2low', 'b1_predictor_onestage_ce')


@pytest.mark.parametrize('names', [LOW2HIGH, HIGH2LOW])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_tool(convert, tmp_path, names, suffix):
    """A file that detectron2 wrote becomes, bit for bit, what `from_maskdino` gives."""
    state = released(*names)
    source, target = tmp_path / 'model_final.pth', tmp_path / f'ours.{suffix}'
    torch.save(dict(model=state, iteration=9, scheduler=dict(last_epoch=9)), source)
    done = convert(source, target)
    assert done.error is None
    expected, _ = from_maskdino(state)
    found = read_checkpoint(target)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert f'{PREDICTOR}class_embed.weight -> ' in done.stdout
    assert f'{PREDICTOR}decoder.norm.bias left out: the same as' in done.stdout
    assert 'criterion.empty_weight left out: class weights' in done.stdout
    assert f"load_from = '{target}'" in done.stdout
    # the file that was written is known, too; what only released weights tell is asked for
    again = convert(target, '--inspect')
    assert again.error is None and 'our layout, MaskDINO for' in again.stdout
    assert '`double_norm`, `mask_padding` and `proposal_sizes`' in again.stdout


def test_levels_the_other_way_round():
    """Each table with a row a level, against a flip by hand."""
    for names, flipped in ((LOW2HIGH, 'predictor'), (HIGH2LOW, 'pixel_decoder')):
        state = released(*names)
        out, report = from_maskdino(state)
        seen = 0
        for theirs, ours in report.renamed.items():
            leaf = re.search(r'(sampling_offsets|attention_weights)\.(weight|bias)$', theirs)
            if leaf:
                last = 2 if leaf[1] == 'sampling_offsets' else 1
                rows = state[theirs].reshape(HEADS, -1, POINTS, last, *state[theirs].shape[1:])
                assert rows.shape[1] > 2 and not torch.equal(rows, rows.flip(1))
                if f'.{flipped}.' in ours:
                    rows = rows.flip(1)
                assert torch.equal(out[ours], rows.reshape(state[theirs].shape))
                seen += 1
            elif theirs.endswith('level_embed'):
                rows = state[theirs].flip(0) if flipped == 'pixel_decoder' else state[theirs]
                assert torch.equal(out[ours], rows)
        assert seen > 8
        widths = [
            out[name].shape[1]
            for i in range(3)
            for name in out
            if name.endswith(f'input_convs.{i}.conv.weight')
        ]
        assert widths == [40, 56, 72]  # the finest first


def test_half_precision_and_wrappers(convert, tmp_path):
    state = {f'module.{name}': tensor.half() for name, tensor in released(*LOW2HIGH).items()}
    torch.save(dict(model=state), tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth').error is None
    expected, _ = from_maskdino(released(*LOW2HIGH))
    found = read_checkpoint(tmp_path / 'b.pth')
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.half().float())
    assert convert(tmp_path / 'a.pth', tmp_path / 'c.pth', '--half').error is None
    types = {tensor.dtype for tensor in read_checkpoint(tmp_path / 'c.pth').values()}
    assert types == {torch.float16}


def test_for_the_other_package(convert, tmp_path):
    """Two stages in mmseg: the head has another name there, the config another class."""
    torch.save(dict(model=released(*LOW2HIGH)), tmp_path / 'a.pth')
    done = convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--host', 'mmseg')
    assert done.error is None and "type='itpn_mm.MaskDINODecodeHead'" in done.stdout
    assert 'two_stage=True' in done.stdout and 'panoptic_head' not in done.stdout
    found = read_checkpoint(tmp_path / 'b.pth')
    assert {name.split('.')[0] for name in found} == {'decode_head'}
    lines = done.stdout[done.stdout.index('model = ') :]
    model = read_config(lines)['model'] | dict(backbone=dict(type='mmseg.ResNet', depth=18))
    state = build(model).decode_head.state_dict()
    assert {f'decode_head.{name}' for name in state} == found.keys()
    back = convert(tmp_path / 'b.pth', tmp_path / 'c.pth', '--host', 'mmdet')
    assert back.error is None
    assert (
        read_checkpoint(tmp_path / 'c.pth').keys() == from_maskdino(released(*LOW2HIGH))[0].keys()
    )


def change(state: dict, name: str, value: Tensor | None) -> dict:
    return {k: v for k, v in state.items() if k != name} | ({} if value is None else {name: value})


@pytest.mark.parametrize(
    ('name', 'value', 'options', 'message'),
    [
        (
            f'{PREDICTOR}extra',
            torch.ones(1),
            (),
            'looks like a MaskDINO .* unknown: sem_seg.*extra',
        ),
        ('backbone.odd', torch.ones(1), (), '1 of its names are unknown: backbone.odd'),
        (
            f'{PREDICTOR}decoder.norm.bias',
            torch.ones(64),
            (),
            'decoder.norm.bias` should hold what',
        ),
        (f'{PREDICTOR}decoder_norm.bias', None, (), 'decoder.norm.bias` should hold what'),
        (f'{PIXEL_DECODER}input_proj.0.0.weight', torch.ones(64, 72, 1, 1), (), None),
        ('x', None, ('--to', 'authors'), "not written with its authors' names, only read"),
        ('x', None, ('--accelerate', 'windows'), 'holds no backbone of itpn_mm'),
        ('x', None, ('--part', 'pyramid'), 'holds no pyramid'),
    ],
)
def test_refused(convert, tmp_path, name, value, options, message):
    state = released(*LOW2HIGH)
    if message is None:  # all maps are equally wide, as after a pyramid of ours
        for i in (1, 2):
            state[f'{PIXEL_DECODER}input_proj.{i}.0.weight'] = value
        message = 'does not tell whether the finest or the coarsest comes first'
    torch.save(dict(model=change(state, name, value)), tmp_path / 'a.pth')
    done = convert(tmp_path / 'a.pth', tmp_path / 'b.pth', *options)
    assert done.error is not None and '\n' not in done.error
    assert done.error.startswith(f'{tmp_path / "a.pth"}: ') and re.search(message, done.error)
    assert not (tmp_path / 'b.pth').exists()


def test_ours_is_not_written_for_the_authors(convert, tmp_path):
    state, _ = from_maskdino(released(*LOW2HIGH))
    torch.save(dict(state_dict=state), tmp_path / 'a.pth')
    done = convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--to', 'authors')
    assert 'only read' in done.error
    with pytest.raises(ValueError, match='only read'):
        remap(state, to='authors')
    torch.save(
        dict(state_dict={'backbone.merges.0.reduction.weight': torch.ones(1)}), tmp_path / 'c'
    )
    assert 'holds no MaskDINO' in convert(tmp_path / 'c', tmp_path / 'd', '--host', 'mmseg').error
