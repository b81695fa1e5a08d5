"""Whether a training takes more and more memory."""

import ctypes
import gc
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from tests.checklist import note_figure

WARM_UP, ITERATIONS, LIMIT = 100, 600, 50 * 2**20  # the last one in bytes
STATUS = Path('/proc/self/status')

needs_linux = pytest.mark.skipif(not STATUS.exists(), reason='needs Linux')


class ResidentMemory(Hook):
    """Notes the resident set, freed pages of the heap given back."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if (runner.iter + 1) % 50 == 0:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            lines = STATUS.read_text().splitlines()
            (line,) = [line for line in lines if line.startswith('VmRSS:')]
            self.bytes[runner.iter + 1] = int(line.split()[1]) * 1024

    def check(self, name: str) -> None:
        """Raise if memory grew between the warm-up and the end of all iterations."""
        growth = self.bytes[ITERATIONS] - self.bytes[WARM_UP]
        what = f'{name}: growth in MiB over {ITERATIONS - WARM_UP} iterations'
        note_figure(what, round(growth / 2**20, 1), f'<= {LIMIT // 2**20}')
        print({step: size // 2**20 for step, size in self.bytes.items()})
        assert growth < LIMIT, f'grew by {growth / 2**20:.0f} MiB'
