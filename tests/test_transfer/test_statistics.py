import math

import pytest
from scipy import stats

from benchmarks.transfer.statistics import Estimate, estimate, paired


def test_interval_is_students():
    values = [50.0, 52.5, 49.0, 55.5, 51.0]
    found = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=found.mean, scale=stats.sem(values))
    assert found.mean == pytest.approx(sum(values) / 5)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    found = estimate([3.0])
    assert found.mean == 3 and math.isnan(found.half) and not found.sure
    assert str(found) == '3.0'


def test_pairs_are_of_one_seed():
    found = paired({0: 10.0, 1: 21.0, 2: 30.0}, {0: 8.0, 1: 18.0, 4: 0.0})
    assert found.mean == pytest.approx(2.5) and found.count == 2
    assert paired({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ('found', 'text', 'sure'),
    [
        (Estimate(1.25, 0.5, 5), '+1.2 ± 0.5', True),
        (Estimate(-1.25, 2.0, 5), '-1.2 ± 2.0', False),
    ],
)
def test_differences_have_a_sign(found, text, sure):
    assert found.signed() == text
    assert found.sure is sure
