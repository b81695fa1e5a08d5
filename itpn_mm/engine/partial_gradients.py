"""Keeps the gradients of a step of the optimizer that is gathered over several iterations."""

import logging

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

from .wrappers import has_all_weights, has_stepped, unwrap


def partial_gradients(runner: Runner) -> dict[str, Tensor]:
    """Gradients by name since the last step of the optimizer, on the CPU; none right after one.

    To be called on all ranks. Each has gradients of its own until the step, when they become their
    mean; it is that mean which is given here, so one file holds all.
    """
    if isinstance(runner.optim_wrapper, OptimWrapperDict) or has_stepped(runner):
        return {}
    if not has_all_weights(runner.model):
        print_log(
            f'iteration {runner.iter} is between two steps of the optimizer, and the checkpoint '
            f'lacks the gradients of {type(runner.model).__name__} since the last: a run that '
            'resumes from it is not exact; save at multiples of the accumulation',
            'current',
            logging.WARNING,
        )
        return {}
    parameters = dict(unwrap(runner.model).named_parameters())
    known = torch.tensor([float(p.grad is not None) for p in parameters.values()])
    known = known.to(next(iter(parameters.values())).device)
    all_reduce(known, 'max')  # a rank may not have used all
    gradients = {}
    for (name, parameter), known_to_any in zip(parameters.items(), known.tolist()):
        if known_to_any:
            gradient = parameter.grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient.clone()
            all_reduce(gradient, 'mean')
            gradients[name] = gradient.detach().cpu()
    return gradients


def restore_gradients(runner: Runner, gradients: dict[str, Tensor]) -> None:
    """Let the next step of the optimizer begin with these."""
    parameters = dict(unwrap(runner.model).named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name])
    if gradients:
        print_log('gradients since the last step of the optimizer are restored', 'current')
