"""Any valid config builds and trains."""

import pytest

from .random_models import random_config, smallest, try_config

pytestmark = pytest.mark.checklist('fuzz-configs')
CASES, CASES_BY_DEFAULT = 300, 42


def failure(cfg: dict) -> str | None:
    """The error of a config without its figures, or None."""
    try:
        try_config(cfg)
    except Exception as error:  # whatever it is, it is to be reported with the config
        return f'{type(error).__name__}: {error}'
    return None


def check(seeds: range) -> None:
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    for seed in seeds:
        cfg = random_config(seed)
        if message := failure(cfg):
            raise AssertionError(f'config {seed}: {message}\n{smallest(cfg, failure)}')


def test_some_valid_configs_train(record_figure):
    check(range(CASES_BY_DEFAULT))
    record_figure('valid configs that train', CASES_BY_DEFAULT, 'all')


@pytest.mark.slow
def test_valid_configs_train(record_figure):
    check(range(CASES_BY_DEFAULT, CASES))
    record_figure('more valid configs that train', CASES - CASES_BY_DEFAULT, 'all')


def test_the_smallest_config_is_told():
    cfg = random_config(2)
    assert cfg['kind'] == 'accelerated'
    cfg['model']['backbone']['window_size'] = 1
    message = failure(cfg)
    assert '`window_size` must be a number of at least 2' in message
    found = smallest(cfg, failure)['model']
    assert found['backbone'].keys() == {'type', 'backbone', 'window_size'}
    assert failure(dict(cfg, model=found)) == message
