"""What the selection and the movement of tokens cost within a pass of an accelerated model."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.measure import timed


class Stopwatch:
    """Seconds within the wrapped calls; on a GPU by its own events, which wait for nothing."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spans: list[tuple] = []

    def _mark(self) -> float | torch.cuda.Event:
        if self.device != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wrap(self, call: Callable) -> Callable:
        """The same function, on the watch."""

        def on_the_watch(*args):
            start = self._mark()
            result = call(*args)
            self.spans.append((start, self._mark()))
            return result

        return on_the_watch

    def seconds(self) -> float:
        """Sum over the calls so far."""
        if self.device != 'cuda':
            return sum(stop - start for start, stop in self.spans)
        torch.cuda.synchronize()
        return sum(start.elapsed_time(stop) for start, stop in self.spans) / 1000


@torch.no_grad()
def selection_share(model: nn.Module, img: Tensor, device: str) -> float:
    """Share of a pass that stage 3 takes for all but the blocks of the backbone.

    That is: cutting into windows, keys and matching, taking tokens out, putting them back, and what
    windows add before the blocks run (gathering tokens, tables of relative positions).
    """
    backbone, acceleration = model.backbone, model.backbone.acceleration
    stage, blocks = Stopwatch(device), Stopwatch(device)
    run_stage, run_block = stage.wrap(acceleration.forward), blocks.wrap(backbone.run_block)

    def forward(*args) -> Tensor:
        backbone.run_block = run_block  # not before: the blocks of stages 1 and 2 are no part of it
        return run_stage(*args)

    acceleration.forward = forward
    try:
        whole = timed(lambda: model(img), device)
    finally:
        del acceleration.forward, backbone.run_block  # those of the classes again
    return (stage.seconds() - blocks.seconds()) / whole
