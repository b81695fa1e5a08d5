"""Masks part the patches of each image in two."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip('mmpretrain')

from itpn_mm.pretraining import PatchMask, RandomMasking

CPU = torch.device('cpu')


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 4), patches=st.integers(1, 60), ratio=st.floats(0.01, 0.99))
def test_visible_and_masked_part_the_patches(batch, patches, ratio):
    num_keep = math.floor(patches * (1 - ratio) + 1e-6)
    if num_keep == 0:
        with pytest.raises(ValueError, match=f'of {patches} patches leaves none visible'):
            RandomMasking(ratio)(batch, patches, CPU)
        return
    mask = RandomMasking(ratio)(batch, patches, CPU)
    assert mask.keep.shape == (batch, num_keep)
    both = torch.cat([mask.keep, mask.masked], dim=1)
    assert torch.equal(both.sort(dim=1).values, torch.arange(patches).expand(batch, -1))
    flags = mask.as_bool()
    assert flags.dtype == torch.bool
    for i in range(batch):
        assert flags[i].nonzero()[:, 0].tolist() == mask.masked[i].sort().values.tolist()


def test_the_papers_share():
    mask = RandomMasking()(2, 196, CPU)
    assert (mask.keep.shape, mask.masked.shape) == ((2, 49), (2, 147))


def test_every_image_has_a_mask_of_its_own_and_every_patch_its_turn():
    torch.manual_seed(0)
    flags = RandomMasking(0.75)(2000, 16, CPU).as_bool()
    assert not torch.equal(flags[0], flags[1])
    # The share of 2000 draws lies within 5 standard deviations (0.0097) of 0.75 for each patch.
    assert (flags.float().mean(dim=0) - 0.75).abs().max() < 0.05


def test_least_noise_is_kept():
    mask = PatchMask.from_noise(torch.tensor([[0.5, 0.1, 0.9, 0.3]]), 2)
    assert (mask.keep.tolist(), mask.masked.tolist()) == ([[1, 3]], [[0, 2]])
    assert mask.as_bool().tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    ('patches', 'ratio', 'visible'), [(196, 0.75, 49), (50, 0.75, 12), (25, 0.8, 5), (100, 0.9, 10)]
)
def test_rounding_takes_no_patch(patches, ratio, visible):
    assert RandomMasking(ratio)(1, patches, CPU).keep.shape == (1, visible)


@pytest.mark.parametrize('ratio', [0, 1, -0.1, 1.5, float('nan')])
def test_bad_ratio(ratio):
    with pytest.raises(ValueError, match=r'`ratio` of RandomMasking must be in \(0, 1\), but got'):
        RandomMasking(ratio)
