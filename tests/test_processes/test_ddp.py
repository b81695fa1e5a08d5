"""Two processes with half of a batch each do what one does with all of it."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from .launch import run_two_processes
from .runs import found, largest_difference, train, training

pytestmark = pytest.mark.checklist('ddp')


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    """What each of two processes found."""
    return run_two_processes('ddp', tmp_path_factory.mktemp('ddp'))


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """What one process finds."""
    return found(train(training(tmp_path_factory.mktemp('one'))))


@pytest.mark.parametrize('run', ['plain', 'with_cp'])
def test_two_times_four_is_one_times_eight(run, two, one, record_figure):
    """Losses of two steps, the gradients of the first and all that is trained or averaged.

    With checkpointing, too; the second step would raise if a parameter were left out of the first.
    """
    losses = sum(rank[run]['losses'] for rank in two) / 2
    loss = float((losses - one['losses']).abs().max())
    gradients = largest_difference(two[0][run]['gradients'], one['gradients'])
    state = largest_difference(two[0][run]['state'], one['state'])
    note = ', with checkpointing' if run == 'with_cp' else ''
    record_figure(f'2 x 4 against 1 x 8{note}: loss', loss, '<= 1e-6')
    record_figure(f'2 x 4 against 1 x 8{note}: gradients, relative', gradients, '<= 1e-5')
    record_figure(f'2 x 4 against 1 x 8{note}: parameters after 2 steps', state, '<= 1e-5')
    assert loss <= 1e-6 and gradients <= 1e-5 and state <= 1e-5
    assert any(name.startswith('teacher.') for name in one['state'])


def test_processes_see_different_images(two):
    assert not torch.equal(two[0]['plain']['losses'], two[1]['plain']['losses'])


def test_teacher_is_equal_on_both_after_50_steps(two, record_figure):
    first, second = (rank['long']['state'] for rank in two)
    teacher = [name for name in first if name.startswith('teacher.')]
    different = [name for name in first if not torch.equal(first[name], second[name])]
    record_figure('tensors that differ between ranks after 50 steps', len(different), '0')
    assert first['teacher.steps'] == 1 + 50
    assert len(teacher) > 40 and not different
    assert not torch.equal(
        first['teacher.module.stages.2.0.attn.qkv.weight'],
        first['backbone.stages.2.0.attn.qkv.weight'],
    )


def test_accumulated_gradients_are_those_of_the_batch(one, tmp_path, record_figure):
    """4 x 2 images against 1 x 8, by `accumulative_counts` of the stock OptimWrapper."""
    four = found(train(training(tmp_path, accumulate=4)))
    losses = four['losses'].view(-1, 4).mean(dim=1)
    loss = float((losses - one['losses']).abs().max())
    gradients = largest_difference(four['gradients'], one['gradients'])
    record_figure('accumulation 4 x 2 against 1 x 8: loss', loss, '<= 1e-6')
    record_figure('accumulation 4 x 2 against 1 x 8: gradients, relative', gradients, '<= 1e-5')
    assert loss <= 1e-6 and gradients <= 1e-5
    assert four['state']['teacher.steps'] == 1 + 2  # moves with the optimizer


def test_sync_bn(two):
    """`sync_bn` converts the norms of a head; to run them in processes, torch asks for GPUs."""
    pytest.importorskip('mmseg')
    from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    from itpn_mm.backbones import HiViT

    init_default_scope('mmseg')
    head = dict(type='UPerHead', in_channels=[8, 16, 32], in_index=[0, 1, 2], channels=8)
    head.update(num_classes=3, pool_scales=(1, 2), norm_cfg=dict(type='BN'), dropout_ratio=0.0)
    torch.manual_seed(0)
    head = MODELS.build(head)
    backbone = HiViT(dict(embed_dims=32, depths=(1, 1, 1), num_heads=2), img_size=32)
    maps = backbone(torch.randn(2, 3, 32, 32))
    expected = head(maps)
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    synced = convert_sync_batchnorm(head, 'torch')
    found = [m for m in synced.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(found) == len(norms) > 0
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in backbone.modules())
    with torch.no_grad():
        torch.testing.assert_close(revert_sync_batchnorm(synced)(maps), expected)
    # What bounds it: where this fails, batch statistics of two processes can be compared here.
    assert 'expected input tensor to be on GPU' in two[0]['sync_bn']
