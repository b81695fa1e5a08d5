"""Stops a run before NaN or infinity gets into the weights, and says where it comes from."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from itpn_mm.registry import HOOKS

from .nonfinite import all_finite, as_plain, find_cause, name_error, paths_of
from .seed_hook import seed_iteration
from .wrappers import has_all_weights, unwrap

# What a model may raise that NaN goes through.
FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
MOST_FILES = 10  # of a process: each holds the weights


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Look at the gradients before each step of the optimizer; if they are not finite, say why.

    The iteration, or all of those whose gradients are gathered for the step, is run once more,
    under the seeds of :class:`SeedHook`, to name the first layer whose output, or gradient, is not
    finite. Weights, batch and cause go to `nonfinite_iter_<iteration>_rank<rank>.pth` in the folder
    of the run, tensors and text only, the first ten times. The weights have not taken the step:
    training stops, or goes on with the next batch, with running statistics as they were before.

    Mixed precision in float16 has its own guard, which skips steps that overflow and lowers the
    scale of the loss; these are counted, and stop the run if no scale helps.

    A model may fail of NaN before there are gradients, as a matching of predictions to objects
    does: in a run of one process, this hook explains and skips that, too.

    Args:
        max_skips: Number of steps in a row to skip before training stops. It stops at once if a
            parameter is not finite.
        max_overflows: Number of steps in a row that mixed precision may skip.

    Raises:
        FloatingPointError: Training stops; the message names layer, losses, images and file.
        ValueError: An argument is negative.
    """

    # After what changes gradients on their way, and before anything is saved.
    priority = 'LOW'

    def __init__(self, max_skips: int = 0, max_overflows: int = 30) -> None:
        for name, value in dict(max_skips=max_skips, max_overflows=max_overflows).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f'`{name}` of NonFiniteHook must be 0 or more, but got {value!r}')
        self.max_skips, self.max_overflows = max_skips, max_overflows
        self.skipped: list[int] = []  # iterations
        self.overflows = self.in_a_row = self.overflows_in_a_row = 0
        self._handle: RemovableHandle | None = None
        self._batches: list[tuple[int, Any]] = []  # since the last step, with their iterations
        self._buffers: list[Tensor] = []
        self._before: list[Tensor] = []  # values of `_buffers` before these batches
        self._stepped = False
        self._own_step: Callable | None = None  # that someone else gave the instance
        self._files = 0

    def before_train(self, runner: Runner) -> None:
        """Stand before the steps of the optimizer, and around those of the model."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):  # of several optimizers, or of DeepSpeed
            kind = type(wrapper).__name__
            print_log(f'NonFiniteHook does not guard {kind}', 'current', logging.WARNING)
            return
        self._handle = wrapper.optimizer.register_step_pre_hook(
            lambda optimizer, *_: self._before_step(runner, optimizer)
        )
        self._buffers = [b for b in runner.model.buffers() if b.is_floating_point()]
        self._before = [b.clone() for b in self._buffers]
        if get_world_size() == 1:
            self._own_step = vars(runner.model).get('train_step')
            runner.model.train_step = self._explaining(runner, runner.model.train_step)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Keep the batch, in case it is needed again."""
        if self._handle is None:
            return
        self._stepped = False
        if not self._batches and self._buffers:
            torch._foreach_copy_(self._before, self._buffers)
        self._batches.append((runner.iter, data_batch))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Count steps that mixed precision has skipped."""
        if self._handle is None or not runner.optim_wrapper.should_update():
            return
        if self._stepped:
            self.overflows_in_a_row = 0
        else:
            self.overflows += 1
            self.overflows_in_a_row += 1
            if self.overflows_in_a_row > self.max_overflows:
                self._stop(runner, f'{self.overflows_in_a_row} steps in a row overflow in float16')
        self._batches.clear()

    def after_train(self, runner: Runner) -> None:
        """Say how many steps were skipped."""
        if self._handle is not None:
            self._handle.remove()
            vars(runner.model).pop('train_step', None)
            if self._own_step is not None:
                runner.model.train_step = self._own_step
        if self.skipped or self.overflows:
            print_log(
                f'steps skipped: {len(self.skipped)} with gradients that were not finite '
                f'(iterations {self.skipped}), {self.overflows} that overflowed in float16',
                'current',
                logging.WARNING,
            )

    def _before_step(self, runner: Runner, optimizer: Optimizer) -> None:
        self._stepped = True
        gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
        if not gradients or not _spoilt(runner.model, gradients):
            self.in_a_row = 0
            return
        self._refuse(runner, 'gradients are not finite')

    def _refuse(self, runner: Runner, what: str) -> None:
        """Let this step be skipped, or stop."""
        self.in_a_row += 1
        self.skipped.append(runner.iter)
        parameters = _parameters(runner.optim_wrapper.optimizer)
        if self.in_a_row > self.max_skips or _spoilt(runner.model, parameters):
            self._stop(runner, what)
        text = self._explain(runner, f'{what}, step skipped')
        print_log(text, 'current', logging.WARNING)
        for parameter in parameters:  # an optimizer leaves alone what has no gradient
            parameter.grad = None
        for buffer, before in zip(self._buffers, self._before):
            buffer.copy_(before)  # running statistics may hold NaN for good

    def _stop(self, runner: Runner, what: str) -> None:
        raise FloatingPointError(
            f'{self._explain(runner, what)}. The weights did not take this step: lower the '
            'learning rate, clip gradients, repair the data, or raise `max_skips` of NonFiniteHook '
            'to pass over it'
        )

    def _explaining(self, runner: Runner, train_step: Callable) -> Callable:
        """Wrap `train_step` of the model, to explain what it fails of."""

        def explained(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            try:
                return train_step(*args, **kwargs)
            except FAILURES as error:
                own = self._stepped  # it comes from here, or from the optimizer
                if own or not any(cause for _, _, cause, _ in self._search(runner)):
                    raise
                self._stepped = True
                self._refuse(runner, f'the model fails ({name_error(error)})')
                return {}

        return explained

    def _explain(self, runner: Runner, what: str) -> str:
        """Find the cause on each rank, save what shows it, and put it in words."""
        found = self._search(runner)
        # The first of the batches that shows something, else the last.
        iteration, batch, cause, text = next((f for f in found if f[2]), found[-1])
        causes = all_gather_object(cause)
        images = ', '.join(paths_of(batch)) or 'without file names'
        text = f'{cause or text}; images: {images}'
        if cause or not any(causes):
            with_weights = bool(cause) or runner.rank == 0
            text += f'; {self._save(runner, iteration, batch, cause, with_weights)}'
        ranks = all_gather_object(text)
        told = [f'rank {r}: {t}' for r, (t, cause) in enumerate(zip(ranks, causes)) if cause]
        text = '; '.join(told) if len(ranks) > 1 and told else text
        return f'iteration {iteration} (epoch {runner.epoch}), {what}; first: {text}'

    def _save(
        self, runner: Runner, iteration: int, batch: Any, cause: str | None, with_weights: bool
    ) -> str:
        """Write what shows the cause; where it went, or why not, in words."""
        self._files += 1
        if self._files > MOST_FILES:
            return f'not saved, as there are {MOST_FILES} files'
        path = Path(runner.work_dir) / f'nonfinite_iter_{iteration}_rank{runner.rank}.pth'
        with_weights = with_weights and has_all_weights(runner.model)
        weights = unwrap(runner.model).state_dict() if with_weights else {}
        content = dict(
            iteration=iteration,
            epoch=runner.epoch,
            rank=runner.rank,
            seed=runner.seed,
            cause=cause,
            images=paths_of(batch),
            batch=as_plain(batch),
            state_dict=weights,
        )
        try:
            torch.save(content, path)
        except (OSError, RuntimeError) as error:  # a full disk, say, must not hide the rest
            return f'not saved: {name_error(error)}'
        return f'saved to {path}'

    def _search(self, runner: Runner) -> list[tuple[int, Any, str | None, str]]:
        """Iteration, batch, cause, and words if there is none, of each batch since the last step.

        All are run on each rank, as a model may wait for the others.
        """
        if not has_all_weights(runner.model):
            kind = type(runner.model).__name__
            return [(*place, None, f'not looked for in {kind}') for place in self._batches]
        found = []
        for iteration, batch in self._batches:
            cause, words = None, 'finite when run again, so it depends on what was drawn at random'
            try:
                cause = self._find(runner, iteration, batch)
            except Exception as error:  # such as memory, which must not hide the rest
                words = f'cannot be run again ({name_error(error)})'
            found.append((iteration, batch, cause, words))
        return found

    def _find(self, runner: Runner, iteration: int, batch: Any) -> str | None:
        model, wrapper = unwrap(runner.model), runner.optim_wrapper
        scaler = getattr(wrapper, 'loss_scaler', None)

        def step() -> dict[str, Tensor]:
            with wrapper.optim_context(model):
                data = model.data_preprocessor(batch, True)
                losses = model._run_forward(data, mode='loss')
                total, logs = model.parse_losses(losses)
            (total if scaler is None else scaler.scale(total)).backward()
            return {name: torch.as_tensor(value) for name, value in logs.items()}

        # Hooks of modules in a compiled model would not be called.
        stance = getattr(torch.compiler, 'set_stance', None)
        seed_iteration(runner, iteration)
        with torch.enable_grad(), stance('force_eager') if stance else nullcontext():
            return find_cause(model, step)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group['params']]


def _spoilt(model: nn.Module, tensors: Sequence[Tensor]) -> bool:
    """Whether a tensor is not finite, on any rank where ranks have shards of their own."""
    bad = not all_finite(tensors)
    if has_all_weights(model):  # gradients have been averaged and are the same
        return bad
    anywhere = torch.tensor(bad, dtype=torch.uint8, device=tensors[0].device)
    all_reduce(anywhere, 'max')
    return bool(anywhere)
