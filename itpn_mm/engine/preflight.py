"""Finds early what would stop a run: parts that do not fit, and images that are not finite."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from itpn_mm.registry import HOOKS

from .model_fit import check_model_fits
from .runner_load import adapt_checkpoint, prepare_load
from .wrappers import unwrap


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check model and images of a run, and let it load released checkpoints.

    Whether the parts of the model fit is checked before weights are initialised or loaded, see
    :func:`check_model_fits`. What is then loaded (`load_from`, the checkpoint given to a test
    script) may be a file of the authors, safetensors, of another size or with another head; nothing
    in it is run. Each training batch is checked for NaN and infinity before it goes to the model;
    integer images cost nothing.

    Args:
        trust: Leave reading of checkpoints to mmengine, which unpickles what they hold: that can
            run any code.

    Raises:
        ValueError: Two parts do not fit (the message names both and their values), a checkpoint is
            unsafe, damaged or of another architecture, or an image holds NaN or infinity (the
            message names its file).
    """

    priority = 'VERY_HIGH'

    def __init__(self, trust: bool = False) -> None:
        self.trust = trust

    def before_run(self, runner: Runner) -> None:
        """Check the model; called ahead of training, validation and test alike."""
        check_model_fits(unwrap(runner.model))
        if not self.trust:
            prepare_load(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Fit what was read to the model; called before the model takes it."""
        adapt_checkpoint(runner, checkpoint)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Check the images of the batch."""
        if isinstance(data_batch, dict):
            check_images_finite(data_batch, batch_idx)


def check_images_finite(data_batch: dict, batch_idx: int) -> None:
    """Raise ValueError naming the image if a floating-point one of `data_batch` is not finite.

    Args:
        data_batch: `inputs`, images (C, H, W), stacked or in lists that may be nested by view, and
            maybe `data_samples`, a sequence with an `img_path` each.
        batch_idx: Index of the batch for the message.
    """
    for index, image in _iter_images(data_batch.get('inputs')):
        if not image.is_floating_point() or not image.numel():
            continue
        # One pass without a temporary of the image's size; NaN goes through to both ends.
        if torch.stack(torch.aminmax(image)).isfinite().all():
            continue
        raise ValueError(
            f'image {index} of training batch {batch_idx}{_describe(data_batch, index)} holds NaN '
            'or infinite values; repair or remove it, or correct the transform that made them'
        )


def _iter_images(inputs: Any, index: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yield the images in `inputs` with their index among the samples of the batch."""
    if isinstance(inputs, Tensor) and inputs.ndim <= 3:
        yield index, inputs
    elif isinstance(inputs, (Tensor, list, tuple)):
        for i, member in enumerate(inputs):
            yield from _iter_images(member, i)
    elif isinstance(inputs, dict):
        for member in inputs.values():
            yield from _iter_images(member)


def _describe(data_batch: dict, index: int) -> str:
    samples = data_batch.get('data_samples')
    if isinstance(samples, (list, tuple)) and index < len(samples):
        path = getattr(samples[index], 'img_path', None)
        if path is not None:
            return f' ({path})'
    return ''
