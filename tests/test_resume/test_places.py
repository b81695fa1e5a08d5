"""Seeds, and so masks and samples, are others at each place of a run and on each rank."""

import itertools

import pytest
import torch

from itpn_mm.engine.seed_hook import ITERATIONS, SAMPLES
from itpn_mm.engine.seeded_data import seed_generators, seed_of

from .launch import start
from .small import LENGTH

pytestmark = pytest.mark.checklist('resume')


def test_seeds_of_all_places_are_distinct(record_figure):
    """Of iterations and of samples, by epochs and without, for two seeds of a run."""
    seeds, ranks, epochs, numbers = (0, 1), range(4), range(4), range(40)
    places = [
        *((ITERATIONS, *p) for p in itertools.product(seeds, range(1000), ranks)),
        *((SAMPLES, *p) for p in itertools.product(seeds, ranks, epochs, numbers, range(4))),
        *((SAMPLES, *p) for p in itertools.product(seeds, ranks, range(5, 80), range(4))),
    ]
    found = {seed_of(*place) for place in places}
    record_figure('places of a run with seeds of their own', len(found), f'>= {len(places)}')
    assert len(found) == len(places) == len(set(places))
    assert all(0 <= seed < 2**64 for seed in found)
    assert seed_of(0, 1, 2) == seed_of(0, 1, 2)


def test_masks_are_others_at_each_place():
    pytest.importorskip('mmpretrain')
    from itpn_mm.pretraining.masking import RandomMasking

    masking, masks = RandomMasking(ratio=0.75), set()
    for place in itertools.product((0, 1), range(20), range(3)):  # seed, iteration, rank
        draws = []
        for noise in (1, 2):  # whatever came before
            torch.manual_seed(noise)
            seed_generators(seed_of(ITERATIONS, *place))
            draws.append(masking(2, 196, torch.device('cpu')).keep)
        assert torch.equal(*draws)
        masks |= {tuple(image.tolist()) for image in draws[0]}
    assert len(masks) == 2 * 20 * 3 * 2


@pytest.mark.slow
def test_two_processes(tmp_path, record_figure):
    """N, an interruption and N on two ranks, which see other samples and draw other noise."""
    process = start('ranks', tmp_path, processes=2)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-6000:]
    one, two = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    for name in ('epochs', 'iterations', 'seeds of their own'):
        assert one['found'][name] == two['found'][name] == []
        seen = one['samples'][name] + two['samples'][name]
        assert sum(seen) == 2 * (2**LENGTH - 1)  # each sample once in each of two epochs
        key = f'{name}, losses'
        assert len({*one['samples'][key], *two['samples'][key]}) == 12
    # The gradients of the two until the step are saved as their mean.
    largest = max(rank['found']['accumulation, largest'] for rank in (one, two))
    record_figure('2 processes, saved between steps: weights differ by', largest, '<= 1e-6')
    assert largest <= 1e-6
    record_figure('2 processes: bit-equal after resuming', 'epochs, iterations, 0 and 2 workers')
