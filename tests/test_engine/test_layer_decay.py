"""Every parameter's rate and weight decay, against the authors' tables and by hand."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from itpn_mm.checkpoint import remap
from tests.checklist import note_figure

from . import models

GOLDEN = Path(__file__).parents[1] / 'data' / 'golden'
LR, DECAY = 2e-4, 0.05
POS_EMBED = 'backbone.pos_embed'


def build_wrapper(model: nn.Module, weight_decay: float | None = DECAY, **cfg) -> OptimWrapper:
    optimizer = dict(type='AdamW', lr=LR)
    if weight_decay is not None:
        optimizer['weight_decay'] = weight_decay
    return build_optim_wrapper(
        model,
        dict(
            optimizer=optimizer,
            constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=cfg,
        ),
    )


def settings(model: nn.Module, **cfg) -> dict[str, tuple[int, float, float]]:
    """Layer id, rate over the base rate and weight decay that each parameter gets, by name."""
    found = {}
    names = {param: name for name, param in model.named_parameters()}
    for group in build_wrapper(model, **cfg).optimizer.param_groups:
        assert group['lr'] == pytest.approx(LR * group['lr_scale'], rel=1e-12)
        assert [names[param] for param in group['params']] == group['param_names']
        for name in group['param_names']:
            assert name not in found
            found[name] = (group['layer_id'], group['lr'] / LR, group['weight_decay'])
    return found


def golden_table(name: str) -> tuple[dict, dict[str, tuple[int, float, float]]]:
    """An authors' table: its settings, and its rows by our names.

    Where several parameters of the authors are one of ours, their rows are equal.
    """
    table = json.loads((GOLDEN / f'{name}.json').read_text())
    assert table['columns'] == ['layer_id', 'lr_scale', 'weight_decay']
    # The merges of Fast-iTPN are convolutions, by which its files are known.
    merge = torch.empty((1, 1, 2, 2) if 'fast' in name else 0)
    _, report = remap(
        {
            key: merge if key.endswith('reduction.weight') else torch.empty(0)
            for key in table['params']
        }
    )
    assert report.renamed.keys() == table['params'].keys() and not report.unexplained
    rows: dict[str, tuple[int, float, float]] = {}
    for key, row in table['params'].items():
        assert rows.setdefault(report.renamed[key], tuple(row)) == tuple(row)
    return table, rows


def expected_settings(
    model: nn.Module, unit: str, rate: float, depths: tuple[int, int, int]
) -> dict[str, tuple[int, float, float]]:
    """The rule once more, on the authors' single list of blocks and merges. Independent of ours."""
    counted = {
        'layer': ('stages', 'merges'),
        'block': ('stages',),
        'attention': ('stages.2',),
    }[unit]
    blocks = []
    for stage, depth in enumerate(depths):
        blocks += [f'backbone.stages.{stage}.{i}.' for i in range(depth)]
        blocks += [f'backbone.merges.{stage}.'] if stage < 2 else []
    ids, count = {}, 0
    for prefix in blocks:
        count += prefix.removeprefix('backbone.').startswith(counted)
        ids[prefix] = count
    expected = {}
    for name, param in model.named_parameters():
        prefix = next((prefix for prefix in blocks if name.startswith(prefix)), None)
        last = not name.startswith('backbone.')
        layer_id = count + 1 if last else ids[prefix] if prefix else 0
        no_decay = param.ndim == 1 or name == POS_EMBED or 'rel_pos' in name
        expected[name] = (layer_id, rate ** (count + 1 - layer_id), 0.0 if no_decay else DECAY)
    return expected


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, (layer_id, scale, decay) in expected.items():
        assert found[name] == (layer_id, pytest.approx(scale, rel=1e-9), decay), name


@pytest.mark.checklist('layer-decay')
@pytest.mark.parametrize(
    ('table_name', 'options'),
    [('h_pixel_finetune_base', {}), ('h_clip_finetune_base', dict(layer_scale_init_value=0.1))],
)
def test_golden_finetuning_of_base(table_name, options):
    """The rate is stated for 13 steps; the model has 31."""
    table, rows = golden_table(table_name)
    model = models.classifier(models.backbone_cfg('base', rel_pos_bias='block', **options))
    rate = table['layer_decay_rate']
    assert_same(settings(model, layer_decay_rate=rate, reference_depth=13), rows)
    assert table['effective_decay'] == pytest.approx(rate ** (13 / 31), rel=1e-12)
    assert_same(settings(model, layer_decay_rate=table['effective_decay']), rows)


@pytest.mark.checklist('layer-decay')
@pytest.mark.parametrize('arch', ['tiny', 'base'])
def test_golden_finetuning_of_fast_itpn(arch):
    """Merges are layers too."""
    table, rows = golden_table(f'h_fast_{arch}')
    model = models.classifier(models.fast_backbone_cfg(arch))
    found = settings(model, layer_decay_rate=table['layer_decay_rate'], unit='layer')
    assert_same(found, rows)


def test_position_tables_of_fast_itpn_differ_from_the_release():
    """The release would decay relative tables, and train a shared one at the head's rate.

    Its published models have none. Ours are like those of HiViT: no decay, first layer.
    """
    for kind, depth in (('block', None), ('shared', 0), ('decoupled', 0)):
        backbone = models.fast_backbone_cfg('tiny', rel_pos_bias=kind, cls_token=True)
        found = settings(models.classifier(backbone), layer_decay_rate=0.8, unit='layer')
        tables = {name: value for name, value in found.items() if 'rel_pos' in name}
        assert len(tables) == {'block': 12, 'shared': 1, 'decoupled': 2}[kind]
        for name, (layer_id, scale, decay) in tables.items():
            at = 5 + int(name.split('.')[3]) if depth is None else depth
            assert (layer_id, decay) == (at, 0.0)
            assert scale == pytest.approx(0.8 ** (17 - at))
        for name in ('backbone.cls_token', POS_EMBED):
            assert found[name] == (0, pytest.approx(0.8**17), 0.0)


@pytest.mark.checklist('layer-decay')
def test_golden_detection_of_base():
    table, rows = golden_table('h_det_HiViTLayerDecay_pixel_base_24')
    model = models.detector(models.backbone_cfg('base'), models.neck_cfg(depth=1))
    found = settings(model, layer_decay_rate=table['layer_decay_rate'], unit='attention')

    # The authors decay the position embedding, by a name that lacks its prefix; we do not.
    layer_id, scale, decay = rows[POS_EMBED]
    assert (decay, found[POS_EMBED][2]) == (DECAY, 0.0)
    rows[POS_EMBED] = (layer_id, scale, 0.0)
    assert rows.keys() - found.keys() == set()
    assert_same({name: found[name] for name in rows}, rows)
    assert {name for name in found if name.startswith(('backbone.', 'neck.'))} <= rows.keys()
    # The heads in the table are stand-ins for the real ones: last layer, full rate.
    rest = found.keys() - rows.keys()
    for name in rest:
        ndim = model.get_parameter(name).ndim
        assert found[name] == (25, 1.0, DECAY if ndim > 1 else 0.0), name


HOSTS = {
    'mmpretrain': models.classifier,
    'mmdet': lambda backbone: models.detector(backbone, models.neck_cfg()),
    'mmseg': lambda backbone: models.segmentor(backbone, models.neck_cfg()),
    'mmrotate': lambda backbone: models.rotated_detector(backbone, models.neck_cfg()),
}


@pytest.mark.checklist('layer-decay')
@pytest.mark.parametrize('unit', ['block', 'attention', 'layer'])
@pytest.mark.parametrize('arch', ['base', 'large'])
@pytest.mark.parametrize('host', HOSTS)
def test_every_parameter_in_every_host(host, arch, unit):
    options = dict(rel_pos_bias='block', layer_scale_init_value=0.1)
    model = HOSTS[host](models.backbone_cfg(arch, **options))
    depths = model.backbone.depths
    assert depths == {'base': (3, 3, 24), 'large': (2, 2, 40)}[arch]
    found = settings(model, layer_decay_rate=0.9, unit=unit)
    assert_same(found, expected_settings(model, unit, 0.9, depths))
    note_figure(f'parameters compared, {host}', len(found), '> 400')
    assert len(found) > 400
    num_layers = {
        ('base', 'block'): 32,
        ('large', 'block'): 46,
        ('base', 'layer'): 34,
        ('large', 'layer'): 48,
    }.get((arch, unit), depths[2] + 2)
    assert {layer_id for layer_id, *_ in found.values()} == set(range(num_layers))


@pytest.mark.checklist('layer-decay')
@pytest.mark.parametrize('rel_pos_bias', ['block', 'shared', 'decomposed'])
def test_position_tables_do_not_decay(rel_pos_bias):
    model = models.classifier(models.backbone_cfg('tiny', rel_pos_bias=rel_pos_bias))
    found = settings(model, layer_decay_rate=0.9)
    tables = [name for name in found if 'rel_pos' in name]
    assert len(tables) == {'block': 10, 'shared': 1, 'decomposed': 20}[rel_pos_bias]
    assert all(model.get_parameter(name).ndim > 1 for name in tables)
    assert {found[name][2] for name in [*tables, POS_EMBED]} == {0.0}


class Backbone(nn.Module):
    """Two layers and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(2))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        if not param_name.startswith(prefix):
            return 3, 4
        match = re.match(r'layers\.(\d)', param_name.removeprefix(prefix))
        return (int(match[1]) + 1 if match else 0), 4


class Model(nn.Module):
    def __init__(self, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.neck = neck
        self.head = nn.Linear(2, 2)


def test_backbone_of_another_package_by_hand():
    assert settings(Model(nn.Conv2d(2, 2, 1)), layer_decay_rate=0.5) == {
        'backbone.pos_embed': (0, 0.125, 0.0),
        'backbone.scale': (0, 0.125, 0.0),
        'backbone.layers.0.weight': (1, 0.25, DECAY),
        'backbone.layers.0.bias': (1, 0.25, 0.0),
        'backbone.layers.1.weight': (2, 0.5, DECAY),
        'backbone.layers.1.bias': (2, 0.5, 0.0),
        'backbone.norm.weight': (0, 0.125, 0.0),
        'backbone.norm.bias': (0, 0.125, 0.0),
        'neck.weight': (3, 1.0, DECAY),
        'neck.bias': (3, 1.0, 0.0),
        'head.weight': (3, 1.0, DECAY),
        'head.bias': (3, 1.0, 0.0),
    }


def test_reference_depth_fixes_the_rate_of_the_first_layer():
    found = settings(Model(), layer_decay_rate=0.5, reference_depth=6)  # of a model with 3 steps
    assert [found[f'backbone.{name}'][1] for name in ('pos_embed', 'layers.0.weight')] == [
        pytest.approx(0.5**6),
        pytest.approx(0.5**4),
    ]
    assert found['head.weight'][1] == 1.0
    assert settings(Model(), layer_decay_rate=0.5, reference_depth=3) == settings(
        Model(), layer_decay_rate=0.5
    )


def test_neck_that_knows_its_depth_counts_from_its_end():
    class Neck(nn.Linear):
        def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
            assert param_name.startswith(prefix)
            return (0 if param_name.endswith('weight') else 1), 2

    found = settings(Model(Neck(2, 2)), layer_decay_rate=0.5)
    assert (found['neck.weight'][:2], found['neck.bias'][:2]) == ((2, 0.5), (3, 1.0))
    assert found['head.weight'][:2] == (3, 1.0)


def test_parameters_with_equal_settings_share_a_group():
    model = Model()
    groups = build_wrapper(model, layer_decay_rate=0.5).optimizer.param_groups
    assert len(groups) == 1 + 3 * 2  # nothing of layer 0 decays here
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))
    one = build_wrapper(model, layer_decay_rate=1, norm_decay_mult=1.0).optimizer.param_groups
    assert {group['lr'] for group in one} == {LR}


def test_custom_keys_multiply_rate_and_replace_decay():
    custom = {
        'backbone.layers': dict(lr_mult=3.0),
        'backbone.layers.1': dict(decay_mult=0.5),
        'head': dict(lr_mult=2.0, decay_mult=0.0),
        'pos_embed': dict(decay_mult=1.0),
    }
    found = settings(Model(), layer_decay_rate=0.5, custom_keys=custom)
    assert found['backbone.layers.0.weight'] == (1, 0.75, DECAY)
    assert found['backbone.layers.0.bias'] == (1, 0.75, 0.0)  # the rule on biases stays
    assert found['backbone.layers.1.weight'] == (2, 0.5, DECAY / 2)  # only the longest key counts
    assert found['backbone.layers.1.bias'] == (2, 0.5, DECAY / 2)
    assert found['head.weight'] == (3, 2.0, 0.0)
    assert found[POS_EMBED] == (0, 0.125, DECAY)


@pytest.mark.parametrize(
    ('option', 'names'),
    [
        ('norm_decay_mult', {'backbone.norm.weight', 'backbone.norm.bias'}),
        (
            'bias_decay_mult',
            {'backbone.layers.0.bias', 'backbone.layers.1.bias', 'head.bias'},
        ),
        ('flat_decay_mult', {'backbone.scale'}),
    ],
)
def test_decay_multiples(option, names):
    plain = settings(Model(), layer_decay_rate=0.5)
    found = settings(Model(), layer_decay_rate=0.5, **{option: 0.5})
    changed = {name for name in plain if plain[name] != found[name]}
    assert changed == names
    assert {found[name][2] for name in names} == {DECAY / 2}


def test_biases_of_queries_and_values_are_biases():
    model = models.classifier(models.fast_backbone_cfg('tiny'))
    found = settings(model, layer_decay_rate=0.9, bias_decay_mult=0.5)
    for name in ('q_bias', 'v_bias'):
        assert found[f'backbone.stages.2.0.attn.qkv.{name}'][2] == DECAY / 2
    assert found['backbone.stages.2.0.ls1.gamma'][2] == 0.0


def test_frozen_parameters_are_left_out():
    model = models.classifier(models.backbone_cfg('tiny', frozen_stages=1))
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    found = settings(model, layer_decay_rate=0.9)
    assert 'backbone.patch_embed.proj.weight' in frozen
    assert found.keys() == {name for name, _ in model.named_parameters()} - frozen


def test_shared_parameter_needs_bypass_duplicate():
    model = Model()
    model.head.weight = model.backbone.layers[0].weight
    with pytest.raises(ValueError, match=r'`head\.weight` and `backbone\.layers\.0\.weight` are'):
        settings(model, layer_decay_rate=0.5)
    found = settings(model, layer_decay_rate=0.5, bypass_duplicate=True)
    assert found['backbone.layers.0.weight'][0] == 1
    assert 'head.weight' not in found


def test_without_weight_decay_the_optimizer_default_holds():
    groups = build_wrapper(Model(), weight_decay=None, layer_decay_rate=0.5).optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {
        torch.optim.AdamW([torch.zeros(1)]).defaults['weight_decay']
    }
    assert len(groups) == 4


def test_wrapped_model():
    wrapped = nn.DataParallel(Model())
    groups = build_wrapper(wrapped, layer_decay_rate=0.5).optimizer.param_groups
    assert {group['layer_id'] for group in groups} == {0, 1, 2, 3}


def test_step_and_schedule_keep_the_ratio_of_rates():
    from mmengine.optim import CosineAnnealingLR

    model = Model()
    wrapper = build_wrapper(model, layer_decay_rate=0.5)
    scheduler = CosineAnnealingLR(wrapper, T_max=10, eta_min_ratio=0.1)
    for _ in range(10):
        wrapper.update_params(sum(param.sum() for param in model.parameters()))
        scheduler.step()
    for group in wrapper.optimizer.param_groups:
        assert group['lr'] == pytest.approx(0.1 * LR * group['lr_scale'])


def test_unused_custom_key_is_reported(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        build_wrapper(Model(), layer_decay_rate=0.5, custom_keys={'bakbone': dict(lr_mult=0.1)})
    finally:
        logger.removeHandler(caplog.handler)
    assert "`custom_keys` ['bakbone'] fit no trainable parameter" in caplog.text
    assert 'layer 3: lr 0.0002, 2 tensors' in caplog.text


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ({}, r'`paramwise_cfg\.layer_decay_rate` must be a number in \(0, 1\], but got None'),
        (dict(layer_decay_rate=0.0), 'but got 0.0'),
        (dict(layer_decay_rate=1.1), 'but got 1.1'),
        (dict(layer_decay_rate='0.9'), "but got '0.9'"),
        (dict(layer_decay_rate=True), 'but got True'),
        (dict(layer_decay_rate=0.9, reference_depth=0), 'reference_depth` must be .* but got 0'),
        (dict(layer_decay_rate=0.9, reference_depth=True), 'reference_depth` .* but got True'),
        (dict(layer_decay_rate=0.9, reference_depth=2.5), r'reference_depth` .* but got 2\.5'),
        (dict(layer_decay_rate=0.9, unit='stage'), "`paramwise_cfg.unit` must be .* got 'stage'"),
        (
            dict(layer_decay_rate=0.9, num_layers=12),
            r"unknown keys \['num_layers'\], known: .*unit",
        ),
        (
            dict(layer_decay_rate=0.9, custom_keys=dict(head=dict(lr_mul=2))),
            r"`paramwise_cfg\.custom_keys\['head'\]` must be .*'lr_mult'.* got \{'lr_mul': 2\}",
        ),
        (dict(layer_decay_rate=0.9, custom_keys=dict(head=2)), r"\['head'\]` must be a dict"),
    ],
)
def test_bad_settings(cfg, message):
    with pytest.raises(ValueError, match=message):
        build_wrapper(Model(), **cfg)


def test_optimizer_without_lr():
    with pytest.raises(ValueError, match=r'`optim_wrapper\.optimizer\.lr` is missing'):
        build_optim_wrapper(
            Model(),
            dict(
                optimizer=dict(type='AdamW'),
                constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
                paramwise_cfg=dict(layer_decay_rate=0.9),
            ),
        )


@pytest.mark.parametrize('backbone', [None, nn.Linear(2, 2)])
def test_model_whose_backbone_has_no_depth(backbone):
    model = Model()
    model.backbone = backbone
    with pytest.raises(ValueError, match=r'Model has (no backbone|backbone Linear)'):
        build_wrapper(model, layer_decay_rate=0.9)
