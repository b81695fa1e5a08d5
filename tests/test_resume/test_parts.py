"""What a run is made of, apart: gradients, scale, seed, sampler, schedulers, validation."""

import functools
import os
import random
import signal

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from itpn_mm.engine import checkpoint_hook, seed_hook
from itpn_mm.engine.seeded_data import seed_generators, seed_loader

from .launch import start
from .runs import differences, remains, run
from .small import EPOCH, LENGTH, Drawn, saved, small

pytestmark = pytest.mark.checklist('resume')


def interrupted(cfg, tmp_path, stop):
    """The run whole, and as it goes on after `stop` iterations, with the losses of both parts."""
    whole, first = run(cfg, tmp_path / 'whole'), run(cfg, tmp_path / 'cut', stop=stop)
    resumed = run(cfg, tmp_path / 'cut', resume=True)
    resumed.losses = first.losses | resumed.losses
    return whole, resumed


def assert_equal(whole, resumed, but: tuple[str, ...] = ()):
    kept = [{k: v for k, v in remains(r).items() if k not in but} for r in (whole, resumed)]
    found = differences(whole.losses, resumed.losses, 'losses') + differences(*kept)
    assert not found, found[:10]
    assert len(whole.losses) == whole.iter == resumed.iter


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(('interval', 'stop'), [(4, 5), (EPOCH, EPOCH), (5, 8), (1, 11)])
def test_place(tmp_path, by_epoch, interval, stop):
    """In the middle of an epoch and at its end, where schedulers of epochs have their step."""
    cfg = small(by_epoch=by_epoch, default_hooks__checkpoint__interval=interval)
    assert_equal(*interrupted(cfg, tmp_path, stop))


@pytest.mark.parametrize('by_epoch', [True, False])
def test_after_the_last_iteration_nothing_is_left_to_do(tmp_path, by_epoch):
    cfg = small(by_epoch=by_epoch)
    whole, again = run(cfg, tmp_path), run(cfg, tmp_path, resume=True)
    assert again.losses == {} and again.iter == 2 * EPOCH
    assert not differences(remains(whole)['model'], remains(again)['model'])


@pytest.mark.parametrize(
    ('interval', 'by_epoch', 'stop'), [(3, False, 3), (2, False, 7), (1, True, 7)]
)
def test_gradients_between_two_steps_are_kept(tmp_path, interval, by_epoch, stop, monkeypatch):
    """An epoch of 6 iterations ends in the middle of a cycle of 4."""
    cfg = small(
        optim_wrapper__accumulative_counts=4,
        default_hooks__checkpoint=dict(interval=interval, by_epoch=by_epoch, save_last=False),
    )
    assert_equal(*interrupted(cfg, tmp_path, stop))
    names = {p.name: 'gradients' in saved(p.parent, p.name) for p in tmp_path.glob('whole/*_*.pth')}
    expected = {
        (3, False): {3: True, 6: True, 9: True, 12: False},
        (2, False): {2: True, 4: False, 6: True, 8: False, 10: True, 12: False},
        (1, True): {1: True, 2: False},
    }[interval, by_epoch]
    kind = 'epoch' if by_epoch else 'iter'
    assert names == {f'{kind}_{number}.pth': partial for number, partial in expected.items()}

    monkeypatch.setattr(checkpoint_hook, 'restore_gradients', lambda *args: None)
    whole, resumed = interrupted(cfg, tmp_path / 'without', stop)
    assert differences(remains(whole)['model'], remains(resumed)['model'])


def test_scale_of_mixed_precision(tmp_path, monkeypatch, record_figure):
    """A scale that rises every 3 steps; mmengine's wrapper asks for a GPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = functools.partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    wrapper = dict(type='AmpOptimWrapper', loss_scale=dict(init_scale=8.0, growth_interval=3))
    cfg = small(optim_wrapper=dict(wrapper, dtype='bfloat16'))
    whole, resumed = interrupted(cfg, tmp_path, 5)
    assert_equal(whole, resumed)
    at_4 = saved(tmp_path / 'cut', 'iter_4.pth')['optimizer']['loss_scaler']
    assert (at_4['scale'], at_4['_growth_tracker']) == (16.0, 1)
    assert resumed.optim_wrapper.loss_scaler.get_scale() == 8.0 * 2 ** (12 // 3)
    record_figure('scale of mixed precision after resuming', 'as without (CPU, bfloat16)')


@pytest.mark.parametrize('by_epoch', [True, False])
def test_seed_that_was_drawn(tmp_path, by_epoch):
    """Of the model, of samples and of their order."""
    cfg = small(by_epoch=by_epoch)
    cfg.randomness.seed = None
    first = run(cfg, tmp_path / 'cut', stop=5)
    resumed = run(cfg, tmp_path / 'cut', resume=True)
    seeded = small(by_epoch=by_epoch, randomness__seed=first.seed)
    whole = run(seeded, tmp_path / 'whole')
    resumed.losses = first.losses | resumed.losses
    assert_equal(whole, resumed)
    other = run(cfg, tmp_path / 'other')
    order = [[run.losses[i]['samples'] for i in range(2 * EPOCH)] for run in (whole, other)]
    assert other.seed != first.seed and order[0] != order[1]


@pytest.mark.checklist('determinism')
def test_thirty_steps(tmp_path, record_figure):
    """With workers of each kind, of a run by epochs."""
    workers = {'0': (0, False), '2': (2, False), '2, persistent': (2, True)}
    runs = [
        run(
            small(
                epochs=30 // EPOCH,
                train_dataloader__num_workers=number,
                train_dataloader__persistent_workers=persistent,
            ),
            tmp_path / name,
        )
        for name, (number, persistent) in workers.items()
    ]
    assert len(runs[0].losses) == 30
    for other in runs[1:]:
        assert_equal(runs[0], other)
    record_figure('bit-equal over 30 steps, workers', '; '.join(workers))


@pytest.mark.checklist('determinism')
def test_validation_in_between_changes_nothing(tmp_path):
    """It draws, and exchanges the weights for their averages meanwhile."""
    cfg = small()
    plain = run(cfg, tmp_path / 'plain')
    loader = dict(cfg.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    cfg.update(
        val_dataloader=dict(loader, batch_size=1), val_cfg={}, val_evaluator=dict(type='Mean')
    )
    validated = run(cfg, tmp_path / 'validated')
    assert 'val/mean' in validated.message_hub.log_scalars
    assert_equal(plain, validated, but=('scalars',))
    whole, resumed = interrupted(cfg, tmp_path / 'more', 7)
    assert_equal(whole, resumed)


def test_another_length_of_the_epoch_is_told(tmp_path, monkeypatch):
    """As with another number of processes: the epoch is begun anew."""
    told = []
    monkeypatch.setattr(seed_hook, 'print_log', lambda message, *args: told.append(message))
    cfg = small(epochs=3)
    run(cfg, tmp_path, stop=9)
    cfg.train_dataloader.dataset.length = 4
    resumed = run(cfg, tmp_path, resume=True)
    [message] = told
    assert message.startswith('iteration 8 is not within epoch 1, which has 2 iterations now')
    assert (resumed.epoch, list(resumed.losses)) == (3, [8, 9, 10, 11])


def test_order_of_a_sampler_of_torch():
    """It draws its order from the global generator."""

    def order(start: int, noise: int) -> list[list[int]]:
        torch.manual_seed(noise)
        loader = DataLoader(Drawn(), batch_size=4, sampler=RandomSampler(Drawn()), collate_fn=list)
        seed_loader(loader, endless=False).begin(0, 7, start=start)
        return [[sample['inputs'].tolist() for sample in batch] for batch in loader]

    whole = order(0, noise=1)
    assert len(whole) == 3 and order(1, noise=2) == whole[1:]
    assert sorted(sample[0] for batch in whole for sample in batch) == list(range(LENGTH))


def test_iterable_data_is_refused():
    class Endless(IterableDataset):
        def __iter__(self):
            yield 0

    for loader in (DataLoader(Endless()), DataLoader(Drawn(), batch_size=None)):
        with pytest.raises(ValueError, match='SeedHook needs a data loader of a map-style'):
            seed_loader(loader, endless=False)


def test_samples_leave_the_generators_alone():
    loader = DataLoader(Drawn(), batch_size=4, sampler=DefaultSampler(Drawn()))
    seed_loader(loader, endless=False).begin(1)
    batches = iter(loader)
    next(batches)  # and the order
    seed_generators(5)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    seed_generators(5)
    next(batches)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_killed_process(tmp_path, record_figure):
    """SIGKILL right after an iteration, in the middle of an epoch, with worker processes."""
    process = start('kill', tmp_path / 'cut', '7')
    output = process.communicate(timeout=120)[0]
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    cfg = small(train_dataloader__num_workers=2)
    resumed, whole = run(cfg, tmp_path / 'cut', resume=True), run(cfg, tmp_path / 'whole')
    assert list(resumed.losses) == list(range(4, 12))
    resumed.losses = whole.losses | resumed.losses
    assert_equal(whole, resumed)
    assert not [name for name in os.listdir(tmp_path / 'cut') if name.endswith('.tmp')]
    record_figure('bit-equal after SIGKILL of the process, workers', 2)
