"""Compiles backbone and pyramid with torch.compile, and leaves the rest of the detector alone."""

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from itpn_mm.registry import HOOKS

from .wrappers import unwrap

# Those of torch.compile, and whether they replay CUDA graphs.
MODES = {
    None: False,
    'default': False,
    'reduce-overhead': True,
    'max-autotune': True,
    'max-autotune-no-cudagraphs': False,
}


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile parts of the model in place, in training, validation and test.

    The heads of a detector branch on what they find, which breaks a compiled graph and compiles it
    anew and anew; backbone and pyramid do not. A part keeps its class and the keys of its state
    dict.

    A graph is compiled for each shape of the input, at its first batch, which takes a while. So
    let the images come in few shapes ("buckets"), at most `max_shapes`: pad them to multiples of
    a large number, by `pad_size_divisor` of the data preprocessor, and let `batch_size` divide the
    data set or set `drop_last`. Images resized to mmdet's (1333, 800) come in 9 shapes with
    `pad_size_divisor=128`: 896 x 896 to 896 x 1408 and upright, but for aspect ratios above 1.67.
    Batches of more shapes than allowed are computed without compilation; torch warns once.

    Args:
        parts: Names of the parts of the model to compile.
        mode: That of `torch.compile`: 'reduce-overhead' replays CUDA graphs, which take the memory
            of each shape for themselves; 'max-autotune' also tries kernels.
        max_shapes: Shapes that a part may be compiled for in training, and again without gradients
            in validation and test. The limit of torch becomes twice as many graphs, for all
            compiled functions of the process.

    Raises:
        ValueError: An argument does not fit, or the model has no such part.
    """

    # Compilation waits for the first batch, so weights may be initialised or loaded before or
    # after this: the priority does not matter.
    def __init__(
        self,
        parts: Sequence[str] = ('backbone', 'neck'),
        mode: str | None = None,
        max_shapes: int = 8,
    ) -> None:
        if isinstance(parts, str) or not parts or not all(isinstance(p, str) for p in parts):
            raise ValueError(f'`parts` must be names of parts of the model, but got {parts!r}')
        if mode not in MODES:
            raise ValueError(f'`mode` must be one of {tuple(MODES)}, but got {mode!r}')
        if isinstance(max_shapes, bool) or not isinstance(max_shapes, int) or max_shapes < 1:
            raise ValueError(
                f'`max_shapes` must be a whole number of at least 1, but got {max_shapes!r}'
            )
        self.parts, self.mode, self.max_shapes = tuple(parts), mode, max_shapes

    def before_run(self, runner: Runner) -> None:
        """Mark the parts for compilation; called ahead of training, validation and test alike."""
        model = unwrap(runner.model)
        for name in self.parts:
            part = getattr(model, name, None)
            if not isinstance(part, nn.Module):
                raise ValueError(
                    f'`parts` of {type(self).__name__} names {name!r}, but {type(model).__name__} '
                    f'has no such part; name some of {[n for n, _ in model.named_children()]}'
                )
            part.compile(dynamic=False, mode=self.mode)
        set_recompile_limit(2 * self.max_shapes)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Let CUDA graphs reuse the memory of the iteration before."""
        self._begin_step()

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """See `before_train_iter`."""
        self._begin_step()

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """See `before_train_iter`."""
        self._begin_step()

    def _begin_step(self) -> None:
        # Without it, torch takes each call of a part for a new iteration and may overwrite the
        # backbone's maps while the neck or a head still reads them.
        if MODES[self.mode] and torch.cuda.is_available():
            torch.compiler.cudagraph_mark_step_begin()


def set_recompile_limit(limit: int) -> None:
    """Let torch compile a function `limit` times before it falls back to running it as it is."""
    config = torch._dynamo.config
    # torch 2.5 knows the names with `cache_size` only, newer ones call them by those below.
    name = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, name, limit)
    total = f'accumulated_{name}'
    setattr(config, total, max(limit, getattr(config, total)))
