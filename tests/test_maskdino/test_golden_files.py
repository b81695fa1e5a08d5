"""No fixture is left out."""

import pytest

from . import (
    test_golden_criterion,
    test_golden_inference,
    test_golden_ops,
    test_golden_pixel_decoder,
    test_golden_predictor,
)
from .golden import DATA, index

pytestmark = pytest.mark.checklist('parity')

MODULES = (
    test_golden_pixel_decoder,
    test_golden_predictor,
    test_golden_criterion,
    test_golden_inference,
    test_golden_ops,
)


def test_golden_fixtures_have_tests():
    tested = [name for module in MODULES for name in module.FIXTURES]
    assert sorted(tested) == sorted(index())
    files = sorted(path.name for path in DATA.glob('*.safetensors'))
    assert sorted(entry['file'] for entry in index().values()) == files
