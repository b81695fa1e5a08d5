"""A wrapped backbone stays a backbone: its keys, training, precision, copies and neighbours."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from itpn_mm.acceleration import TokenMigration, trace_migration
from itpn_mm.acceleration.settings import SETTINGS
from tests.test_backbones.test_hivit import LargestOutput

from .models import HEADS, PATCH, WIDTH, FastiTPN, HiViT, accelerated, images, plain

GRID = (7, 5)
MIGRATION = dict(ratio=0.4, schedule=dict(every=2), window_size=3)
WINDOWS = dict(window_size=3, window_attention=True)
GATHERING = dict(WINDOWS, gathering=True, global_layers=(1,))
CASES = {
    'migration': MIGRATION,
    'windows-rpe': dict(WINDOWS, rel_pos_bias='window'),
    'gathering': GATHERING,
    'all': dict(GATHERING, **MIGRATION, rel_pos_bias='all'),
}
cases = pytest.mark.parametrize('options', CASES.values(), ids=CASES)
KINDS = pytest.mark.parametrize('kind', [HiViT, FastiTPN])

NEW_KEYS = {
    'migration': {},
    'windows-rpe': {'rel_pos.table': (5 * 5, HEADS)},
    'gathering': {
        'gathering_token': (1, 1, WIDTH),
        'scales.0.gamma': (WIDTH,),
        'scales.2.gamma': (WIDTH,),
    },
}
NEW_KEYS['all'] = {
    **NEW_KEYS['gathering'],
    'rel_pos.table': (5 * 5, HEADS),
    'cross_rel_pos.table': (31 * 31, HEADS),
}


@KINDS
@pytest.mark.parametrize('name', CASES)
def test_keys_and_initial_values(kind, name):
    """Those of the backbone, and what gathering and relative positions add."""
    before = plain(kind)
    keys = list(before.state_dict())
    after = TokenMigration(copy.deepcopy(before), **CASES[name])
    assert type(after) is kind
    added = {k: v for k, v in after.state_dict().items() if k not in keys}
    shapes = {f'acceleration.{key}': shape for key, shape in NEW_KEYS[name].items()}
    assert {key: tuple(v.shape) for key, v in added.items()} == shapes
    assert [key for key in after.state_dict() if key not in added] == keys
    for key, value in added.items():
        assert not value.any() or 'gathering_token' in key, key
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value)


@KINDS
@cases
def test_each_state_loads_into_the_other(kind, options):
    before, after = plain(kind), accelerated(plain(kind), **options)
    missing, unexpected = after.load_state_dict(before.state_dict(), strict=False)
    assert all(key.startswith('acceleration.') for key in missing) and not unexpected
    twin = plain(kind)
    missing, unexpected = twin.load_state_dict(after.state_dict(), strict=False)
    assert all(key.startswith('acceleration.') for key in unexpected) and not missing
    other = accelerated(plain(kind), **options)
    other.load_state_dict(after.state_dict())
    x = images(GRID)
    for a, b in zip(other.eval()(x), after.eval()(x)):
        assert torch.equal(a, b)


@cases
@pytest.mark.parametrize('from_wrapped', [False, True])
@pytest.mark.parametrize('to_wrapped', [False, True])
def test_pre_trained_files_load(options, from_wrapped, to_wrapped, tmp_path):
    """`Pretrained` takes files with and without what the wrapper adds, into either."""

    def build(wrapped, **kwargs):
        backbone = plain(img_size=64, patch_size=16, **kwargs)
        return accelerated(backbone, **options) if wrapped else backbone

    source, path = build(from_wrapped), tmp_path / 'file.pth'
    torch.save({f'backbone.{k}': v for k, v in source.state_dict().items()}, path)
    target = build(to_wrapped, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    new = {k: v.clone() for k, v in target.state_dict().items()}
    target.init_weights()
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict().get(key, new[key])), key


@KINDS
@cases
def test_what_it_tells_of_itself(kind, options):
    before = plain(kind, out_indices=(0, 2))
    told = before.out_channels, before.strides, before.embed_dims, before.num_prefix_tokens
    after = TokenMigration(before, **options)
    assert (after.out_channels, after.strides, after.embed_dims, after.num_prefix_tokens) == told
    assert [x.shape for x in after(images(GRID, 2))] == [(2, 4, 28, 20), (2, WIDTH, 7, 5)]


@pytest.mark.parametrize('unit', ['block', 'layer', 'attention'])
@cases
def test_layer_depth(options, unit):
    """That of the backbone; what is new trains as a head does."""
    before, after = plain(), accelerated(plain(), **options)
    for name, _ in after.named_parameters():
        depth, number = after.get_layer_depth(f'backbone.{name}', 'backbone.', unit)
        if name.startswith('acceleration.'):
            assert depth == number - 1
        else:
            assert (depth, number) == before.get_layer_depth(f'backbone.{name}', 'backbone.', unit)


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 3])
@cases
def test_frozen_stages(options, frozen):
    """What is new trains all the same: it was never pre-trained."""
    before = plain(frozen_stages=frozen)
    trains = {name: p.requires_grad for name, p in before.named_parameters()}
    after = accelerated(before, **options).train()
    for name, parameter in after.named_parameters():
        assert parameter.requires_grad == trains.get(name, True), name
    maps = after(images(GRID))
    if any(p.requires_grad for p in after.parameters()):
        maps[2].sum().backward()


@cases
def test_training_and_evaluation_mode(options):
    model, x = accelerated(plain(drop_path_rate=0.5, drop_rate=0.2), **options), images(GRID, 4)
    assert model.training
    assert not torch.equal(model(x)[2], model(x)[2])
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(x)[2], model(x)[2])
    assert model.train() is model and all(module.training for module in model.modules())


@pytest.mark.checklist('equivalences')
@KINDS
@cases
def test_evaluation_without_gradients_equals_with(kind, options):
    model, x = accelerated(plain(kind), **options).eval(), images(GRID, 2)
    with torch.no_grad():
        without = model(x)
    for a, b in zip(model(x), without):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@KINDS
@cases
def test_every_parameter_gets_a_gradient(kind, options):
    model = accelerated(plain(kind), **options)
    sum(x.square().sum() for x in model(images(GRID, 2))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@cases
def test_new_parameters_train_from_their_initial_values(options):
    """At zero the scales have a gradient; after a step of them all the rest has one."""
    model = TokenMigration(plain(), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sum(x.square().mean() for x in model(images(GRID, 2))).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.checklist('equivalences')
@KINDS
@cases
def test_activation_checkpointing_changes_nothing(kind, options):
    x, results = images(GRID, 2), []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = plain(kind, with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.1)
        model = accelerated(model, **options)
        torch.manual_seed(1)  # the same paths and units are dropped, also in the recomputation
        maps = model(x)
        sum(y.square().sum() for y in maps).backward()
        results.append((maps, {k: p.grad for k, p in model.named_parameters()}))
    for a, b in zip(results[0][0], results[1][0]):
        assert torch.equal(a, b)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], atol=0, rtol=0, msg=name)


@cases
def test_activation_checkpointing_recomputes_every_block(options):
    model, counts = accelerated(plain(with_cp=True), **options), [0, 0, 0]

    def count(layer):
        def hook(*_):
            counts[layer] += 1

        return hook

    for layer, block in enumerate(model.stages[2]):
        block.norm2.register_forward_pre_hook(count(layer))
    maps = model(images(GRID))
    assert counts == [1, 1, 1]
    sum(x.sum() for x in maps).backward()
    assert counts == [2, 2, 2]


@pytest.mark.checklist('amp')
@KINDS
@cases
def test_autocast_in_bfloat16(kind, options):
    model, x = accelerated(plain(kind), **options), images(GRID, 2)
    with torch.autocast('cpu', torch.bfloat16):
        maps = model(x)
    sum(y.float().square().sum() for y in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    if not options.get('ratio'):  # rounded keys may choose other tokens
        for a, b in zip(maps, model(x)):
            assert F.cosine_similarity(a.float().flatten(), b.flatten(), 0) > 0.999


@cases
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision(options, dtype):
    model = accelerated(plain(), **options).to(dtype)
    assert {x.dtype for x in model(images(GRID, dtype=dtype))} == {dtype}


@pytest.mark.checklist('no-shared-state')
@cases
def test_copying_and_pickling(options):
    model, x = accelerated(plain(), **options).eval(), images(GRID, 2)
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for a, b in zip(twin(x), expected):
            assert torch.equal(a, b)
        assert len(trace_migration(twin, x)) == len(trace_migration(model, x))
        with torch.no_grad():
            twin.stages[2][0].mlp.fc2.bias.add_(1)
        assert not torch.equal(twin(x)[2], expected[2])
        assert torch.equal(model(x)[2], expected[2])


def test_the_masked_path_is_left_alone():
    """Pre-training runs some of the patches; acceleration is for whole images."""
    model, x = plain().eval(), images((4, 4), 2)
    keep = torch.rand(2, 16).argsort(1)[:, :6]
    expected = model.forward_stages(x, keep)
    wrapped = TokenMigration(model)
    for a, b in zip(wrapped.forward_stages(x, keep), expected):
        assert torch.equal(a, b)


@cases
def test_a_traced_image_is_not_changed_by_tracing(options):
    model, x = accelerated(plain(), **options).eval(), images(GRID, 2)
    expected = model(x)
    trace_migration(model, x)
    for a, b in zip(model(x), expected):
        assert torch.equal(a, b)


@cases
@pytest.mark.parametrize('training', [False, True])
def test_tracing_leaves_the_mode(options, training):
    model = accelerated(plain(drop_path_rate=0.5), **options).train(training)
    trace_migration(model, images(GRID))
    assert all(module.training == training for module in model.modules())


def test_sizes_alternate():
    """What is kept for one size does not serve another."""
    model = accelerated(plain(), **CASES['all']).eval()
    first, second = images((7, 5)), images((5, 7))
    expected = model(first)[2], model(second)[2]
    for _ in range(2):
        assert torch.equal(model(first)[2], expected[0])
        assert torch.equal(model(second)[2], expected[1])


@torch.no_grad()
def test_more_windows_than_the_table_was_made_for():
    """It is resampled; the same bias for all gathering tokens is as good as none."""
    model = accelerated(plain(), **dict(CASES['all'], window_size=2)).eval()
    x, table = images((35, 3)), model.acceleration.cross_rel_pos.table
    random = model(x)[2]
    table.fill_(0)
    none = model(x)[2]
    table.fill_(3)
    same = model(x)[2]
    torch.testing.assert_close(same, none, atol=1e-4, rtol=1e-4)
    assert (random - none).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize('own', [None, 'block', 'shared', 'decoupled'])
def test_windows_need_no_quadratic_tensor(own):
    """Neither do their biases, nor the choice of those that leave."""
    options = dict(MIGRATION, **WINDOWS, gathering=True, rel_pos_bias=None if own else 'window')
    model = accelerated(plain(FastiTPN, rel_pos_bias=own), **dict(options, window_size=8))
    with LargestOutput() as largest:
        model(images((32, 32)))
    assert largest.numel < (32 * 32) ** 2 / 4


def test_it_builds_from_a_config():
    cfg = dict(
        type='itpn_mm.TokenMigration',
        backbone=dict(
            type='itpn_mm.FastiTPN',
            arch=dict(embed_dims=WIDTH, depths=(1, 1, 3), num_heads=HEADS),
            patch_size=PATCH,
            img_size=16,
        ),
        **CASES['all'],
    )
    given = copy.deepcopy(cfg)
    model = MODELS.build(cfg)
    assert cfg == given
    assert type(model) is FastiTPN and model.acceleration.tokens_per_layer(6, 6)[0] < 36


def test_named_settings_are_the_rows_of_the_paper():
    names = ['migration-10', 'migration-20', 'migration-30', 'migration-40', 'windows']
    names += ['windows-rpe', 'gathering', 'gathering-rpe', 'gathering-hrpe', 'all']
    assert [name for name in SETTINGS if name != 'dense'] == names
    with torch.device('meta'):
        for name in names:
            model = TokenMigration(HiViT('base'), **SETTINGS[name])
            last = model.acceleration.tokens_per_layer(48, 48)[-1]
            share = {'all': 0.2}.get(name, SETTINGS[name].get('ratio', 0.0))
            assert last == pytest.approx(48 * 48 * (1 - share), rel=0.01)
            keys = {k for k in model.state_dict() if k.startswith('acceleration.')}
            assert any('gathering_token' in k for k in keys) == (
                name.startswith('gathering') or name == 'all'
            )
