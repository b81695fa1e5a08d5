"""One line for each finished measurement, with the time that is left."""

from __future__ import annotations

import time


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


class Progress:
    """Steps have a cost known before (any unit); the time left goes by what they took so far."""

    def __init__(self, total_cost: float) -> None:
        self.total = total_cost
        self.done = 0.0
        self.start = time.monotonic()

    def step(self, text: str, cost: float) -> None:
        """Report a finished step."""
        self.done += cost
        elapsed = time.monotonic() - self.start
        left = elapsed / self.done * max(self.total - self.done, 0)
        share = min(self.done / self.total, 1)
        print(f'[{share:4.0%}, {clock(elapsed)}, ETA {clock(left)}] {text}', flush=True)
