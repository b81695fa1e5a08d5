"""Makes a training run a function of its seed, whether or not it is interrupted."""

import logging
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from itpn_mm.registry import HOOKS

from .seeded_data import SeededBatches, seed_generators, seed_loader, seed_of

ITERATIONS, SAMPLES = 0, 1  # what a seed is for, so that no two uses share one


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed each iteration from (seed, iteration, rank), and the pipeline of each sample likewise.

    Masks, stochastic depth, noise of queries, mixed images and all else that draws from the global
    generators then depends on the place in the run alone: not on what was drawn before, on
    validation in between, on the number of workers, or on an interruption. So a run that is resumed
    goes on as if nothing had happened, without random states in its checkpoints, and in the middle
    of an epoch too, at the batch after the last one. (mmengine restores model, optimizer,
    schedulers and the scale of mixed precision; but it loads and throws away the batches before, or
    starts the epoch anew, and its generators start over.)

    The seed is `randomness.seed` of the config, or what mmengine drew in its place, which a
    checkpoint remembers.

    Raises:
        ValueError: The data loader has no batches of indices, as that of an iterable dataset.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Take over the data loader, which no batch was taken from yet."""
        loop, loader = runner.train_loop, runner.train_dataloader
        endless = isinstance(loop, IterBasedTrainLoop)
        batches = seed_loader(loader, endless)
        common = [runner.seed]  # `diff_rank_seed` adds the rank to that of the others
        broadcast_object_list(common)
        _seed_sampler(loader, common[0])
        if endless:
            batches.begin(SAMPLES, runner.seed, runner.rank, start=runner.iter)
            loop.dataloader_iterator = _Batches(loader, loop.dataloader_iterator, runner.iter)
        else:
            self._start = _start_in_epoch(runner, len(batches))

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the data loader its epoch, and where in it a resumed run goes on."""
        batches = runner.train_dataloader.batch_sampler
        if not batches.endless:
            start, self._start = self._start, 0
            batches.begin(SAMPLES, runner.seed, runner.rank, runner.epoch, start=start)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Seed the generators for what the model draws."""
        seed_iteration(runner, runner.iter)


def _start_in_epoch(runner: Runner, length: int) -> int:
    """How many batches of the epoch are behind a resumed run."""
    start = runner.iter - runner.epoch * length
    # All are, of a checkpoint of the last iteration: its epoch is yet to be ended.
    if 0 <= start <= length:
        return start
    print_log(
        f'iteration {runner.iter} is not within epoch {runner.epoch}, which has {length} '
        'iterations now: it begins at its first batch',
        'current',
        logging.WARNING,
    )
    return 0


def seed_iteration(runner: Runner, iteration: int) -> None:
    """Seed the global generators for an iteration of a run, on this rank."""
    seed_generators(seed_of(ITERATIONS, runner.seed, iteration, runner.rank))


class _Batches:
    """Stands in for the iterator of a loop that counts iterations.

    Such a loop, resumed, asks for all batches up to where it left off; the batch sampler has passed
    over them already. How it asks depends on the version of mmengine.
    """

    def __init__(self, loader: DataLoader, replaced: Any, iteration: int) -> None:
        self.loader, self.iterator = loader, None
        self.to_skip = 0 if hasattr(replaced, 'skip_iter') else iteration

    def skip_iter(self, num_iters: int) -> None:
        """Nothing is left to do."""

    def __iter__(self) -> '_Batches':
        return self

    def __next__(self) -> Any:
        if self.to_skip:
            self.to_skip -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.loader)
        return next(self.iterator)


def _seed_sampler(loader: DataLoader, seed: int) -> None:
    """Give the sampler the seed of the run, which that of a resumed one knows from now on only."""
    batches: SeededBatches = loader.batch_sampler
    for sampler in {id(s): s for s in (loader.sampler, getattr(batches, 'sampler', None))}.values():
        if hasattr(sampler, 'seed'):
            sampler.seed = seed
        if isinstance(sampler, InfiniteSampler):  # may have been asked for batches ahead
            sampler.indices = sampler._indices_of_rank()
