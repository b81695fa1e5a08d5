"""What the tests of exporting share."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope='session')
def quiet_tracing() -> Iterator[None]:
    """Do not let pytest collect torch's record of each operator it traces: a third of the time."""
    logger = logging.getLogger('torch.__trace')
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before
