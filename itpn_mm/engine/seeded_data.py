"""Makes what a data loader yields a function of the seed and of the place in the run."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .dataset_proxy import DatasetProxy


def seed_of(*place: int) -> int:
    """Mix non-negative whole numbers, such as a seed and an iteration, into a seed of 64 bits."""
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])


def seed_generators(seed: int, devices: bool = True) -> None:
    """Seed the global generators of Python, NumPy and torch, and those of all devices."""
    random.seed(seed)
    np.random.seed([seed >> 32, seed & 0xFFFFFFFF])
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class SeededIndex(NamedTuple):
    """Index of a sample, and the seed under which its pipeline runs."""

    index: Any
    seed: int


class SeededDataset(DatasetProxy):
    """Runs the pipeline of each sample under its own seed, in whatever process.

    The generators are left as they were.
    """

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed_generators(index.seed, devices=False)
            return self.dataset[index.index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])


class SeededBatches:
    """A batch sampler whose indices carry seeds, and which can start in the middle.

    Args:
        batches: Batch sampler of a data loader.
        endless: Whether to begin anew at its end, as a loop that counts iterations wants it.
    """

    def __init__(self, batches: Iterable[Sequence], endless: bool) -> None:
        self.batches, self.endless = batches, endless
        self.place: tuple[int, ...] = ()
        self.start = 0

    def begin(self, *place: int, start: int = 0) -> None:
        """Set what the next iterator mixes into its seeds, and how many batches it passes over."""
        self.place, self.start = place, start

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        number = passes = 0
        while True:
            before = number
            # Samplers of torch draw their order from the global generator.
            seed_generators(seed_of(*self.place, passes), devices=False)
            for batch in self.batches:
                if number >= self.start:
                    seeds = (seed_of(*self.place, number, i) for i in range(len(batch)))
                    yield [SeededIndex(*pair) for pair in zip(batch, seeds)]
                number += 1
            if not self.endless or number == before:
                return
            passes += 1
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(passes)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)  # such as `sampler`, of which hooks set the epoch


def seed_loader(loader: DataLoader, endless: bool) -> SeededBatches:
    """Let a data loader seed its samples, in place; nothing must have been taken from it yet.

    Returns:
        Its batch sampler, to be told where each iterator begins.

    Raises:
        ValueError: The loader makes no batches of indices, as that of an iterable dataset.
    """
    if isinstance(loader.batch_sampler, SeededBatches):
        return loader.batch_sampler
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f'SeedHook needs a data loader of a map-style dataset with batches, but '
            f'`train_dataloader` is of {type(loader.dataset).__name__} with '
            f'`batch_size` {loader.batch_size}; give it a batch size, or remove the hook'
        )
    batches = SeededBatches(loader.batch_sampler, endless)
    # A loader refuses to have these set once it is built. An iterator would draw the seed of its
    # workers from the global generator; one that persists may have been made ahead.
    vars(loader).update(
        dataset=SeededDataset(loader.dataset),
        batch_sampler=batches,
        generator=torch.Generator().manual_seed(0),
        _iterator=None,
    )
    return batches
