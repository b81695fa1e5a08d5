"""Stops a run before NaN or infinity gets into the weights, and says where it comes from."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..registry import HOOKS
from .ema_hook import unwrap
from .nonfinite import all_finite, as_plain, find_cause, paths_of
from .seed_hook import seed_iteration


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Look at the gradients before each step of the optimizer; if they are not finite, say why.

    The iteration is run once more, under the seeds of :class:`SeedHook`, to name the first layer
    whose output, or gradient, is not finite. Weights, batch and cause go to
    `nonfinite_iter_<iteration>_rank<rank>.pth` in the folder of the run, tensors and text only. The
    weights have not taken the step: training stops, or goes on with the next batch.

    Mixed precision in float16 has its own guard, which skips steps that overflow and lowers the
    scale of the loss; these are counted, and stop the run if no scale helps.

    Args:
        max_skips: Number of steps in a row to skip before training stops.
        max_overflows: Number of steps in a row that mixed precision may skip.

    Raises:
        FloatingPointError: Training stops; the message names layer, losses, images and file.
        ValueError: An argument is negative.
    """

    # After what changes gradients on their way, and before anything is saved.
    priority = 'LOW'

    def __init__(self, max_skips: int = 0, max_overflows: int = 30) -> None:
        for name, value in dict(max_skips=max_skips, max_overflows=max_overflows).items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f'`{name}` of NonFiniteHook must be 0 or more, but got {value!r}')
        self.max_skips, self.max_overflows = max_skips, max_overflows
        self.skipped: list[int] = []  # iterations
        self.overflows = self.in_a_row = self.overflows_in_a_row = 0
        self._handle: RemovableHandle | None = None
        self._batch: Any = None
        self._stepped = False
        self._suspect: tuple[int, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Stand before the steps of the optimizer."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):  # of several optimizers, or of DeepSpeed
            kind = type(wrapper).__name__
            print_log(f'NonFiniteHook does not guard {kind}', 'current', logging.WARNING)
            return
        self._handle = wrapper.optimizer.register_step_pre_hook(
            lambda optimizer, *_: self._before_step(runner, optimizer)
        )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Keep the batch, in case it is needed again."""
        self._batch, self._stepped = data_batch, False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Count steps that mixed precision has skipped; remember a batch to blame later on."""
        if self._handle is None:
            return
        if not runner.optim_wrapper.should_update():
            # Gradients are gathered over several batches: which one spoils them shows in the loss.
            loss = (outputs or {}).get('loss')
            if self._suspect is None and isinstance(loss, Tensor) and not loss.isfinite().all():
                self._suspect = runner.iter, data_batch
            return
        self._suspect = None
        if self._stepped:
            self.overflows_in_a_row = 0
            return
        self.overflows += 1
        self.overflows_in_a_row += 1
        if self.overflows_in_a_row > self.max_overflows:
            self._stop(runner, f'{self.overflows_in_a_row} steps in a row overflow in float16')

    def after_train(self, runner: Runner) -> None:
        """Say how many steps were skipped."""
        if self._handle is not None:
            self._handle.remove()
        if self.skipped or self.overflows:
            print_log(
                f'steps skipped: {len(self.skipped)} with gradients that were not finite '
                f'(iterations {self.skipped}), {self.overflows} that overflowed in float16',
                'current',
                logging.WARNING,
            )

    def _before_step(self, runner: Runner, optimizer: Optimizer) -> None:
        self._stepped = True
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        bad = (~all_finite(gradients)).to(torch.uint8)
        all_reduce(bad, 'max')  # the shards of one process may be whole
        if not bad:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped.append(runner.iter)
        if self.in_a_row > self.max_skips:
            self._stop(runner, 'gradients are not finite')
        print_log(self._explain(runner, 'step skipped'), 'current', logging.WARNING)
        for parameter in parameters:  # an optimizer leaves alone what has no gradient
            parameter.grad = None

    def _stop(self, runner: Runner, what: str) -> None:
        raise FloatingPointError(
            f'{self._explain(runner, what)}. The weights did not take this step: lower the '
            'learning rate, clip gradients, repair the data, or raise `max_skips` of NonFiniteHook '
            'to pass over it'
        )

    def _explain(self, runner: Runner, what: str) -> str:
        """Find the cause on each rank, save what shows it, and put it in words."""
        iteration, batch = self._suspect or (runner.iter, self._batch)
        whole = _is_whole(runner.model)
        cause = self._find(runner, iteration, batch) if whole else None
        path = Path(runner.work_dir) / f'nonfinite_iter_{iteration}_rank{runner.rank}.pth'
        torch.save(
            dict(
                iteration=iteration,
                epoch=runner.epoch,
                rank=runner.rank,
                seed=runner.seed,
                cause=cause,
                images=paths_of(batch),
                batch=as_plain(batch),
                state_dict=unwrap(runner.model).state_dict() if whole else {},
            ),
            path,
        )
        found = cause or (
            'finite when run again, so it depends on what was drawn at random'
            if whole
            else f'not looked for in {type(runner.model).__name__}'
        )
        images = ', '.join(paths_of(batch)) or 'without file names'
        own = f'{found}; images: {images}; saved to {path}'
        ranks = all_gather_object(own if cause else None)
        told = {f'rank {rank}: {text}' for rank, text in enumerate(ranks) if text}
        text = '; '.join(sorted(told)) if len(ranks) > 1 and told else own
        return f'iteration {iteration} (epoch {runner.epoch}), {what}; first: {text}'

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


def _is_whole(model: nn.Module) -> bool:
    """Whether each process has all weights, and runs the model inside without the wrapper."""
    return not is_model_wrapper(model) or isinstance(model, DistributedDataParallel)
