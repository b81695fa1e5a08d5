"""FSDP on mmengine's FlexibleRunner: two processes that share the model; on the CPU."""

import shutil

import pytest
import torch

pytest.importorskip('mmpretrain')

from itpn_mm.checkpoint import read_checkpoint
from itpn_mm.engine.fsdp import WRAPPERS, FSDPStrategy, wrap_blocks
from itpn_mm.layers import AttentionBlock
from itpn_mm.registry import MODELS

from ..test_pretraining.models import itpn_cfg
from .launch import run_two_processes
from .runs import found, largest_difference, train, training

pytestmark = pytest.mark.checklist('fsdp')


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    return tmp_path_factory.mktemp('fsdp')


@pytest.fixture(scope='module')
def two(out):
    """What each of two processes found; their checkpoints stay in `out`."""
    return run_two_processes('fsdp', out)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The runner of one process without FSDP; of the same kind, which draws the same weights."""
    strategy = dict(type='SingleDeviceStrategy')
    out = tmp_path_factory.mktemp('one')
    return train(training(out, runner_type='FlexibleRunner', strategy=strategy))


def state_of(result: dict) -> dict:
    return {WRAPPERS.sub('', name): tensor for name, tensor in result['state'].items()}


@pytest.mark.parametrize('run', ['full', 'local', 'with_cp'])
def test_sharded_training_is_plain_training(run, two, one, record_figure):
    """Two steps with clipped gradients and EMA teacher: 2 x 4 images against 1 x 8."""
    expected = found(one)
    losses = sum(rank[run]['losses'] for rank in two) / 2
    loss = float((losses - expected['losses']).abs().max())
    state = largest_difference(state_of(two[0][run]), expected['state'])
    record_figure(f'FSDP ({run}) against one process: loss, CPU', loss, '<= 1e-6')
    record_figure(f'FSDP ({run}): parameters and teacher after 2 steps, CPU', state, '<= 1e-5')
    assert loss <= 1e-6 and state <= 1e-5


def test_each_process_holds_half(two, one):
    held = [rank['full']['held'] for rank in two]
    total = sum(parameter.numel() for parameter in one.model.parameters())
    assert sum(held) == total and abs(held[0] - held[1]) <= 0.01 * total


def test_parameter_groups_are_those_of_whole_parameters(two, one):
    """Rates by layer, and weight decay for matrices alone, which are vectors once sharded."""
    keys = ('lr', 'lr_scale', 'layer_id', 'weight_decay', 'param_names')
    expected = [
        {key: group[key] for key in keys} for group in one.optim_wrapper.optimizer.param_groups
    ]
    for rank in two:
        groups = [{key: group[key] for key in keys} for group in rank['full']['groups']]
        for group in groups:
            group['param_names'] = [WRAPPERS.sub('', name) for name in group['param_names']]
        assert groups == expected


@pytest.mark.parametrize('kind', ['full', 'local'])
def test_checkpoint_loads_into_a_plain_model(kind, two, out, record_figure):
    path = out / kind / 'iter_2.pth'
    model = MODELS.build(itpn_cfg())
    model.load_state_dict(read_checkpoint(path))  # strict
    expected = state_of(two[0][kind])
    found = model.state_dict()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    record_figure(
        f'{kind} checkpoint of FSDP: tensors that differ in a plain model', len(different), '0'
    )
    assert found.keys() == expected.keys() and not different


@pytest.mark.parametrize('kind', ['full', 'local'])
def test_resumed_run_is_the_uninterrupted_one(kind, two):
    for rank in two:
        resumed, whole = rank[f'{kind}, resumed'], rank['four steps']
        assert torch.equal(resumed['losses'], whole['losses'][2:])
        assert all(torch.equal(resumed['state'][k], v) for k, v in whole['state'].items())


def test_missing_shard_is_named(two, out, tmp_path):
    shutil.copytree(out / 'local' / 'iter_2.pth', tmp_path / 'x.pth')
    (tmp_path / 'x.pth' / 'rank1.pth').unlink()
    with pytest.raises(
        ValueError, match=r'x\.pth: .* has \d+ of \d+ values in 1 files; there must'
    ):
        read_checkpoint(tmp_path / 'x.pth')


def test_shards_of_others_are_refused(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(2))), tmp_path / 'rank0.pth')
    with pytest.raises(ValueError, match=r"no `meta\['shapes'\]`.*itpn_mm.FSDPStrategy"):
        read_checkpoint(tmp_path)


def test_blocks_are_the_units():
    model = MODELS.build(itpn_cfg())
    units = [name for name, module in model.named_modules() if wrap_blocks(module, False, 0)]
    assert 'backbone.stages.2.1' in units and 'teacher.module.stages.0.0' in units
    assert 'neck.outputs.p4' in units and 'decoder.blocks.0' in units
    assert not any(other.startswith(f'{unit}.') for unit in units for other in units)
    assert isinstance(model.get_submodule('decoder.blocks.0'), AttentionBlock)


def test_token_migration_is_refused(tmp_path):
    backbone = dict(
        type='itpn_mm.TokenMigration', backbone=itpn_cfg()['backbone'], ratio=0.2, window_size=2
    )
    strategy = FSDPStrategy(work_dir=str(tmp_path), env_kwargs=dict(launcher='none'))
    with pytest.raises(ValueError, match='`strategy` is FSDP, but the backbone is a TokenMigr'):
        strategy._wrap_model(MODELS.build(backbone))
