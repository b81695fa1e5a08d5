"""Puts NaN into a training at a chosen place, and trainings to put it into."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from itpn_mm.engine.seed_hook import ITERATIONS
from itpn_mm.engine.seeded_data import seed_of

from ..losses import config, digest
from ..tiny_configs import plain_text


class Spoil(Hook):
    """Changes the output of a layer in some iterations.

    Args:
        layer: Name of the layer; None for the model's first parameter instead.
        iterations: When; also when they are run again, which is seen by their seeds.
        change: What becomes of the output.
        times: How often; a number, if a cause is not to recur when the iteration is run again.
    """

    def __init__(
        self, layer: str | None, iterations: Iterable[int], change: Callable, times: float = 1e9
    ) -> None:
        self.layer, self.iterations, self.change = layer, set(iterations), change
        self.seeds: set[int] = set()
        self.times = times
        self.states: dict[int, str] = {}  # digest of weights and optimizer before an iteration
        self.buffers: dict[int, dict[str, Tensor]] = {}

    def before_train(self, runner: Runner) -> None:
        self.seeds = {seed_of(ITERATIONS, runner.seed, i, runner.rank) for i in self.iterations}
        if self.layer:
            model = getattr(runner.model, 'module', runner.model)
            model.get_submodule(self.layer).register_forward_hook(self._spoil)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter in self.iterations:
            self.states[runner.iter] = state_of(runner)
            buffers = runner.model.named_buffers()
            self.buffers[runner.iter] = {name: buffer.clone() for name, buffer in buffers}
            if not self.layer:
                self.change(runner.model)

    def _spoil(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if torch.initial_seed() not in self.seeds or not self.times:
            return None
        self.times -= 1
        return self.change(output)


def nan_in(tensor: Tensor) -> Tensor:
    """One value of it becomes NaN."""
    spoilt = tensor.clone(memory_format=torch.contiguous_format)
    spoilt.view(-1)[0] *= float('nan')
    return spoilt


class NanBackward(torch.autograd.Function):
    """Nothing in forward; one value of the gradient becomes NaN."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return nan_in(gradient)


def state_of(runner: Runner) -> str:
    """Digest of all parameters and of the optimizer."""
    parameters = dict(runner.model.named_parameters())
    return digest(parameters, runner.optim_wrapper.optimizer.state_dict()['state'])


def build(name: str, work_dir: Path, *hooks: Hook, steps: int = 4, **guard: Any) -> Runner:
    """The Runner of a shrunk config, with the settings of its guard and more hooks."""
    cfg = config(name, work_dir, steps=steps)
    cfg.default_hooks.nonfinite.update(guard)
    cfg.log_level = 'WARNING'
    with plain_text():
        runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner
