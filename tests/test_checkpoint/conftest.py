import logging

import pytest
from mmengine.logging import MMLogger


@pytest.fixture
def log():
    """What is logged, as (level, text)."""
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            records.append((record.levelno, record.getMessage()))

    logger = MMLogger.get_current_instance()
    handler = Handler()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
