"""Finds where NaN or infinity comes from, and keeps what is needed to look at it again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    # The fastest that torch has for many tensors; squares of large numbers may overflow.
    if torch.stack(torch._foreach_norm(tensors)).isfinite().all():
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def find_cause(model: nn.Module, step: Callable[[], Mapping[str, Tensor]]) -> str | None:
    """Run forward and backward once more, and name the first thing in it that is not finite.

    Args:
        model: The model, not wrapped. Its gradients are removed, its buffers kept.
        step: Runs one pass of it, backward included, and returns the losses by name.

    Returns:
        What was first, in words; None if all is finite this time.

    Raises:
        Exception: The pass does, and all was finite until then.
    """
    named = [(name or 'the model', module) for name, module in model.named_modules()]
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f'parameter `{name}` ({_count(parameter)})'
    causes: list[str] = []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    losses: Mapping[str, Tensor] = {}
    try:
        with _watching(named, causes):
            losses = step()
    except Exception as error:  # what a model makes of NaN: matching predictions refuses it
        if not causes:
            raise
        causes.append(name_error(error))
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    bad_losses = [name for name, loss in losses.items() if not loss.isfinite().all()]
    if bad_losses:
        causes.append(f'loss {", ".join(f"`{name}`" for name in bad_losses)}')
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            causes.append(f'the gradient of `{name}` ({_count(parameter.grad)})')
            break
    model.zero_grad(set_to_none=True)
    return ', then '.join(causes) or None


@contextmanager
def _watching(named: list[tuple[str, nn.Module]], causes: list[str]) -> Iterator[None]:
    """Note the first output, and the first gradient of an output, that is not finite."""
    # Identity of a tensor -> the tensor, which must live for that, and modules it is an input of.
    taken: dict[int, tuple[Tensor, list[str]]] = {}

    def check(name: str, module: nn.Module, inputs: tuple, kwargs: dict, output: Any) -> None:
        bad = [t for t in _tensors(output) if not t.isfinite().all()]
        if bad and not causes:
            given = any(not t.isfinite().all() for t in _tensors((inputs, kwargs)))
            origin = 'from an input that already was not finite' if given else 'from finite inputs'
            causes.append(
                f'the output of `{name}` ({type(module).__name__}; {_count(bad[0])}), {origin}'
            )
        for tensor in _tensors((inputs, kwargs)):
            if tensor.requires_grad:
                taken.setdefault(id(tensor), (tensor, []))[1].append(name)
        for tensor in _tensors(output):
            if tensor.requires_grad:
                entry = taken.setdefault(id(tensor), (tensor, []))
                tensor.register_hook(
                    lambda gradient, takers=entry[1]: check_gradient(name, takers, gradient)
                )

    def check_gradient(name: str, takers: list[str], gradient: Tensor) -> None:
        if not causes and not gradient.isfinite().all():
            takers = ', '.join(f'`{taker}`' for taker in takers) or 'no other layer'
            causes.append(
                f'the gradient of the output of `{name}`, which goes to {takers} '
                f'({_count(gradient)})'
            )

    handles = [
        module.register_forward_hook(
            lambda module, inputs, kwargs, output, name=name: check(
                name, module, inputs, kwargs, output
            ),
            with_kwargs=True,
        )
        for name, module in named
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _tensors(member)


def _count(tensor: Tensor) -> str:
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f'{nan} NaN and {infinite} infinite of {tensor.numel()} values'


def name_error(error: Exception) -> str:
    """Kind and first line of an error."""
    return f'{type(error).__name__}: {error}'.partition('\n')[0]


def as_plain(value: Any) -> Any:
    """A batch without classes of any package, so that it is read back without running code.

    Tensors go to the CPU, arrays become tensors, data samples become dicts, and what else there is
    becomes text.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.as_tensor(value)
    if isinstance(value, BaseDataElement):
        return as_plain(dict(value.all_items()))
    if isinstance(value, Mapping):
        return {str(name): as_plain(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(member) for member in value]
    if isinstance(getattr(value, 'tensor', None), Tensor):  # boxes of mmdet
        return value.tensor.detach().cpu()
    if hasattr(value, 'masks'):  # of mmdet, bitmaps or polygons
        return as_plain(value.masks)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def paths_of(batch: Any) -> list[str]:
    """The files of the images of a batch, where its samples tell."""
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    samples = samples if isinstance(samples, (list, tuple)) else []
    return [str(s.img_path) for s in samples if getattr(s, 'img_path', None) is not None]
