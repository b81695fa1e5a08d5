import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


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


@pytest.fixture
def convert(monkeypatch, capsys):
    """Runs the tool; gives what it printed, and the message if it refused."""

    def run(*args) -> SimpleNamespace:
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        error = None
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            error = str(end.code)
        return SimpleNamespace(stdout=capsys.readouterr().out, error=error)

    return run
