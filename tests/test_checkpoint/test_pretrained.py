import logging

import pytest
import torch
from mmengine.model import BaseModel, PretrainedInit
from safetensors.torch import save_file

from itpn_mm.checkpoint import PretrainedModule, load_pretrained, remap
from itpn_mm.registry import MODELS
from tests.golden import load, under

from .models import (
    ARCH,
    authors_state,
    backbone,
    fast_backbone,
    fast_pretraining,
    neck,
    pretrained,
    save_authors,
    save_ours,
)

ARCH_CFG = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64)
NECK_CFG = dict(type='itpn_mm.TransformerPyramidNeck', in_channels=(8, 16, 32), out_channels=16)


class Detector(BaseModel):
    """Something with a backbone and a neck."""

    def __init__(self, backbone: dict, neck: dict) -> None:
        super().__init__()
        self.backbone, self.neck = MODELS.build(backbone), MODELS.build(neck)

    def forward(self, x):
        return self.neck(self.backbone(x))


def assert_part(module, state, prefix, skip=()):
    loaded = module.state_dict()
    for key, tensor in under(state, prefix).items():
        if key not in skip:
            assert torch.equal(loaded[key], tensor), key


@pytest.fixture
def authors_file(tmp_path):
    return save_authors(tmp_path / 'authors.pth', authors_state())


@pytest.mark.parametrize('kind', ['authors', 'ours', 'safetensors'])
@pytest.mark.parametrize('prefixes', [(None, None), ('backbone.', 'neck.'), ('backbone', 'neck')])
def test_one_file_loads_both_parts_of_a_detector(tmp_path, kind, prefixes):
    state = authors_state()
    expected = remap(state)[0]
    if kind == 'authors':
        path = save_authors(tmp_path / 'a.pth', state)
    elif kind == 'ours':
        torch.save(dict(state_dict=expected, meta={}), path := tmp_path / 'a.pth')
    else:
        save_file(expected, path := tmp_path / 'a.safetensors')
    detector = Detector(
        dict(**ARCH_CFG, init_cfg=pretrained(path, prefixes[0])),
        dict(**NECK_CFG, init_cfg=pretrained(path, prefixes[1])),
    )
    detector.init_weights()
    assert_part(detector.backbone, expected, 'backbone.')
    assert_part(detector.neck, expected, 'neck.')


@pytest.mark.checklist('parity')
def test_golden_numbers_of_a_loaded_file(authors_file):
    """The same output as the weights loaded strictly by hand."""
    by_hand = Detector(ARCH_CFG, NECK_CFG)
    state = remap(authors_state())[0]
    by_hand.load_state_dict(
        {k: v for k, v in state.items() if k.startswith(('backbone.', 'neck.'))}, strict=True
    )
    init_cfg = pretrained(authors_file)
    loaded = Detector(dict(**ARCH_CFG, init_cfg=init_cfg), dict(**NECK_CFG, init_cfg=init_cfg))
    loaded.init_weights()
    x = torch.randn(1, 3, 64, 96)
    for a, b in zip(loaded(x), by_hand(x), strict=True):
        assert torch.equal(a, b)


def test_report_is_logged(authors_file, log):
    model = backbone(img_size=96, rel_pos_bias='block', init_cfg=pretrained(authors_file))
    model.init_weights()
    level, text = next((level, text) for level, text in log if 'loaded from' in text)
    lines = text.splitlines()
    tensors = len(model.state_dict()) - 2
    assert level == logging.WARNING  # something is missing
    assert lines[0] == f'HiViT loaded from {authors_file} (`backbone.*`)'
    assert lines[1:5] == [
        f'  loaded:     {tensors} tensors, 100.00% of the values',
        '  resized:    1: pos_embed (1, 16, 32) -> (1, 36, 32)',
        '  missing:    2 (keep their initial values): stages.2.0.attn.rel_pos.table, '
        'stages.2.1.attn.rel_pos.table',
        '  unexpected: 0',
    ]
    ignored = len(authors_state()) - tensors
    assert lines[5] == f'  ignored:    {ignored} on purpose'
    assert {line.split(':')[0].strip() for line in lines[6:]} == {
        f'part `{part}` of the file' for part in ('neck', 'decoder', 'head')
    }


def test_a_full_load_is_no_warning(authors_file, log):
    neck(init_cfg=pretrained(authors_file)).init_weights()
    assert [level for level, text in log if 'loaded from' in text] == [logging.INFO]


def test_dropped_names_are_reported(tmp_path):
    path = save_authors(tmp_path / 'a.pth', authors_state('b1_pixel_cls_rpe'))
    report = load_pretrained(backbone(rel_pos_bias='block'), path)
    assert report.ignored['relative_position_index'] == 'an index that the model computes'
    assert report.missing == report.unexpected == [] and report.loaded_share == 1


def test_half_precision(tmp_path):
    state = {key: tensor.half() for key, tensor in authors_state().items()}
    path = tmp_path / 'deepspeed.pt'
    torch.save(dict(module=state), path)
    model = backbone(img_size=128, init_cfg=pretrained(path))
    model.init_weights()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_part(
        model, remap({k: v.float() for k, v in state.items()})[0], 'backbone.', ['pos_embed']
    )


def test_other_prefix(tmp_path):
    teacher, student = backbone(), backbone()
    path = save_ours(tmp_path / 'a.pth', **{'teacher.module': teacher, 'backbone': student})
    model = backbone(init_cfg=pretrained(path, 'teacher.module.'))
    model.init_weights()
    assert_part(model, teacher.state_dict(), '')
    assert not torch.equal(model.patch_embed.proj.weight, student.patch_embed.proj.weight)


def test_file_of_the_backbone_alone(tmp_path):
    source = backbone()
    torch.save(source.state_dict(), path := tmp_path / 'a.pth')
    model = backbone(init_cfg=pretrained(path))
    model.init_weights()
    assert_part(model, source.state_dict(), '')


def test_other_initialisers_run_first(tmp_path):
    path = save_ours(tmp_path / 'a.pth', backbone=backbone())
    constant = dict(type='Constant', val=0.5, layer='Linear')
    model = backbone(rel_pos_bias='block', init_cfg=[pretrained(path), constant])
    model.init_weights()
    assert not (model.stages[2][0].mlp.fc1.weight == 0.5).any()
    model = backbone(init_cfg=constant)
    model.init_weights()
    assert (model.stages[2][0].mlp.fc1.weight == 0.5).all()
    assert model.init_cfg == constant


def test_class_as_type(tmp_path):
    source = backbone()
    path = save_ours(tmp_path / 'a.pth', backbone=source)
    model = backbone(init_cfg={**pretrained(path), 'type': PretrainedInit})
    model.init_weights()
    assert_part(model, source.state_dict(), '')


def test_initialising_twice_loads_once(tmp_path, log):
    path = save_ours(tmp_path / 'a.pth', backbone=backbone())
    model = backbone(init_cfg=pretrained(path))
    model.init_weights()
    model.init_weights()
    assert sum('loaded from' in text for _, text in log) == 1
    assert any('called more than once' in text for _, text in log)


def test_init_info_of_a_parent(tmp_path):
    path = save_ours(tmp_path / 'a.pth', backbone=backbone(), neck=neck())
    detector = Detector(dict(**ARCH_CFG, init_cfg=pretrained(path)), NECK_CFG)
    notes = {}
    detector._dump_init_info = lambda: notes.update(detector._params_init_info)
    detector.init_weights()
    note = notes[detector.backbone.patch_embed.proj.weight]['init_info']
    assert note == f'PretrainedInit: load from {path} (`backbone.*`)'


def refuse(model: PretrainedModule, match: str, error=ValueError):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(error, match=match) as caught:
        model.init_weights()
    assert '\n' not in str(caught.value)
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_wide_pyramid_into_a_narrow_one(tmp_path):
    """A released file has 512 channels where 256 were announced."""
    path = save_ours(tmp_path / 'a.pth', neck=neck(out_channels=512))
    refuse(
        neck(out_channels=256, init_cfg=pretrained(path)),
        'the checkpoint has out_channels=512 but TransformerPyramidNeck was built with '
        r'out_channels=256: set neck\.out_channels=512',
    )


def test_wrong_arch(tmp_path):
    large = backbone(dict(embed_dims=48, depths=(2, 2, 4), num_heads=3))
    path = save_ours(tmp_path / 'a.pth', backbone=large)
    refuse(
        backbone(init_cfg=pretrained(path)),
        r'a\.pth: the checkpoint has embed_dims=48, depths=\(2, 2, 4\) but HiViT was built with '
        r'embed_dims=32, depths=\(1, 1, 2\): set backbone\.arch to one with embed_dims=48',
    )


def test_more_blocks_than_the_model_is_an_error(tmp_path):
    """Every parameter of the model could be loaded, and it would still be another model."""
    deep = backbone(dict(ARCH, depths=(1, 1, 3)))
    path = save_ours(tmp_path / 'a.pth', backbone=deep)
    refuse(
        backbone(init_cfg=pretrained(path)), r'set backbone\.arch to one with depths=\(1, 1, 3\)'
    )


def test_another_pyramid_depth(authors_file):
    message = r'has depth=2 but .* was built with depth=1: set neck\.depth=2'
    refuse(neck(depth=1, init_cfg=pretrained(authors_file)), message)


def test_levels_that_are_not_built_are_ignored(authors_file):
    model = neck(out_strides=(8, 16), init_cfg=pretrained(authors_file))
    report = load_pretrained(model, str(authors_file))
    reason = 'pyramid level that no `out_strides` needs'
    levels = {key for key, why in report.ignored.items() if why == reason}
    assert levels == {k for k in under(remap(authors_state())[0], 'neck.') if '.p4.' in k}
    assert levels and report.unexpected == report.missing == []


def test_level_that_the_file_has_not(tmp_path):
    path = save_ours(tmp_path / 'a.pth', neck=neck(out_strides=(8, 16)))
    message = r'holds only .*% of the values of Transf.*, at least 99%.*missing: laterals\.p4'
    refuse(neck(init_cfg=pretrained(path)), message)


def test_less_than_99_percent(tmp_path):
    state = {f'backbone.{key}': tensor for key, tensor in backbone().state_dict().items()}
    state.pop('backbone.merges.0.reduction.weight')
    torch.save(state, path := tmp_path / 'a.pth')
    message = (
        r'holds only 9\d\.\d% of the values of HiViT, .*missing: merges\.0\.reduction\.weight; not'
    )
    refuse(backbone(init_cfg=pretrained(path)), message)


def test_one_missing_bias_is_reported_only(tmp_path):
    state = {f'backbone.{key}': tensor for key, tensor in backbone().state_dict().items()}
    state.pop('backbone.patch_embed.proj.bias')
    state['backbone.extra'] = torch.zeros(3)
    torch.save(state, path := tmp_path / 'a.pth')
    report = load_pretrained(backbone(), str(path))
    assert report.missing == ['patch_embed.proj.bias'] and report.unexpected == ['extra']
    assert 0.99 < report.loaded_share < 1


def test_other_kind_of_relative_position(tmp_path):
    """The authors' detection starts decomposed positions anew where pre-training had tables."""
    path = save_ours(tmp_path / 'a.pth', backbone=backbone(rel_pos_bias='block'))
    report = load_pretrained(backbone(rel_pos_bias='decomposed'), str(path))
    assert len(report.missing) == 4 and len(report.ignored) == 2 and report.loaded_share == 1
    assert set(report.ignored.values()) == {
        'relative position of a kind that the model does not have'
    }


def test_shape_that_no_argument_explains(tmp_path):
    state = {f'backbone.{key}': tensor for key, tensor in backbone().state_dict().items()}
    state['backbone.merges.0.norm.weight'] = torch.zeros(7)
    torch.save(state, path := tmp_path / 'a.pth')
    message = r'does not fit HiViT: merges\.0\.norm\.weight \(7,\) instead of \(32,\)'
    refuse(backbone(init_cfg=pretrained(path)), message)


def test_another_architecture(tmp_path):
    torch.save(
        {'conv1.weight': torch.zeros(3), 'layer1.0.conv1.weight': torch.zeros(3)},
        path := tmp_path / 'a.pth',
    )
    message = r'no tensor fits HiViT; the file holds conv1 \(1\), layer1 \(1\): set `prefix`'
    refuse(backbone(init_cfg=pretrained(path)), message)


def test_file_without_a_pyramid(tmp_path):
    """A fine-tuned classifier has a norm for a neck."""
    path = save_authors(tmp_path / 'a.pth', authors_state('b2_pixel_cls'))
    message = (
        r'no tensor under `neck\.\*` fits Transf.*; the file holds backbone \(\d+\), neck \(2\)'
    )
    refuse(neck(init_cfg=pretrained(path)), message)


def test_wrong_prefix(authors_file):
    message = r'no tensor under `student\.\*` fits HiViT'
    refuse(backbone(init_cfg=pretrained(authors_file, 'student')), message)


def test_unexplained_names(tmp_path):
    state = {**authors_state(), 'blocks.0.mlp.ffn_ln.weight': torch.zeros(1)}
    path = save_authors(tmp_path / 'a.pth', state)
    refuse(
        backbone(init_cfg=pretrained(path)), r'1 of its names are unknown: blocks\.0\.mlp\.ffn_ln'
    )


@pytest.mark.parametrize(
    'init_cfg, error, message',
    [
        (dict(checkpoint='none.pth'), FileNotFoundError, 'no such checkpoint'),
        (dict(checkpoint='https://example.org/a.pth'), ValueError, 'only local files are read'),
        (dict(checkpoint=None), ValueError, '`checkpoint` must be the path of a file'),
    ],
)
def test_bad_checkpoint(init_cfg, error, message):
    refuse(backbone(init_cfg=dict(type='Pretrained', **init_cfg)), message, error)


@pytest.mark.parametrize(
    'init_cfg, message',
    [
        (pretrained('a.pth') | dict(strict=True), r"but got \['checkpoint', 'strict'\]"),
        (dict(type='Pretrained'), r'takes `checkpoint` and `prefix`, but got \[\]'),
        ([dict(type='Pretrained')], r'takes `checkpoint` and `prefix`, but got \[\]'),
        (dict(checkpoint='a.pth'), r"must be a dict with a `type`.* got {'checkpoint': 'a.pth'}"),
        ('a.pth', r"`init_cfg` must be a dict with a `type`, .* but got 'a.pth'"),
        (['a.pth'], r"or a list of them, but got \['a.pth'\]"),
    ],
)
@pytest.mark.parametrize('build', [backbone, neck])
def test_bad_init_cfg_is_refused_when_the_part_is_built(build, init_cfg, message):
    with pytest.raises(ValueError, match=message):
        build(init_cfg=init_cfg)


@pytest.mark.parametrize('half', [False, True])
def test_fast_pretraining_file_loads_both_parts(tmp_path, half):
    """As DeepSpeed saves it: under `module`, in half precision."""
    state = fast_pretraining()
    if half:
        state = {key: tensor.half() for key, tensor in state.items()}
    torch.save(dict(module=state, epoch=3), path := tmp_path / 'a.pt')
    expected = remap({key: tensor.float() for key, tensor in state.items()})[0]
    model = fast_backbone(img_size=96, init_cfg=pretrained(path))
    model.init_weights()
    assert_part(model, expected, 'backbone.', ['pos_embed'])
    assert model.pos_embed.shape == (1, 36, 32)
    pyramid = neck(depth=1, bias=True, init_cfg=pretrained(path))
    pyramid.init_weights()
    assert_part(pyramid, expected, 'neck.')


def test_fast_file_and_hivit(tmp_path):
    fast = save_authors(tmp_path / 'fast.pth', fast_pretraining())
    refuse(
        backbone(init_cfg=pretrained(fast)),
        r'fast\.pth: the checkpoint is of a FastiTPN but the model has a HiViT: set backbone\.type='
        r"'itpn_mm\.FastiTPN'",
    )
    plain = save_authors(tmp_path / 'plain.pth', authors_state())
    refuse(fast_backbone(init_cfg=pretrained(plain)), r"set backbone\.type='itpn_mm\.HiViT'")
    refuse(
        fast_backbone(cls_token=True, init_cfg=pretrained(fast)),
        r'has cls_token=False but .* set backbone\.cls_token=False',
    )
    cls_file = save_authors(tmp_path / 'cls.pth', authors_state('g05_fast_cls_meanpool'))
    refuse(fast_backbone(init_cfg=pretrained(cls_file)), r'set backbone\.cls_token=True')


@pytest.mark.parametrize('img_size', [64, 96])
def test_shared_table_for_every_block(tmp_path, img_size):
    """The authors' loader does it, too."""
    state = authors_state('g08_fast_cls_sharedrelpos')
    path = save_authors(tmp_path / 'a.pth', state)
    model = fast_backbone(img_size=img_size, cls_token=True, rel_pos_bias='block')
    report = load_pretrained(model, str(path))
    assert report.copied == {'rel_pos.table': 2} and not report.missing
    assert 'copied:     rel_pos.table to 2 blocks' in str(report)
    tables = [block.attn.rel_pos.table for block in model.stages[2]]
    assert torch.equal(*tables) and tables[0] is not tables[1]
    if img_size == 64:
        table = state['rel_pos_bias.relative_position_bias_table']
        assert torch.equal(tables[0], table)
    with torch.no_grad():
        tables[0].zero_()
    assert tables[1].any()  # not one tensor in two places


def test_tables_of_blocks_are_no_shared_table(tmp_path):
    path = save_authors(tmp_path / 'a.pth', authors_state('g07_fast_cls_relpos'))
    report = load_pretrained(fast_backbone(cls_token=True, rel_pos_bias='shared'), str(path))
    assert report.missing == ['rel_pos.table'] and not report.copied


def test_any_module_can_load(tmp_path):
    """The base class knows no part: names are matched as they are."""

    class Head(PretrainedModule):
        def __init__(self, init_cfg):
            super().__init__(init_cfg)
            self.fc = torch.nn.Linear(2, 2)

    torch.save(
        {'fc.weight': torch.ones(2, 2), 'fc.bias': torch.ones(2)}, path := tmp_path / 'a.pth'
    )
    head = Head(pretrained(path))
    head.init_weights()
    assert (head.fc.weight == 1).all()


def test_fixture_has_all_parts():
    assert {key.split('.')[0] for key in remap(under(load('a1_pixel_pretrain'), 'sd/'))[0]} == {
        'backbone',
        'neck',
        'decoder',
        'head',
    }
