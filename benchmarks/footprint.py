"""Memory of a training step, predicted by running it on tensors without contents.

Shapes, types, views and lifetimes are those of the step; no memory is taken and nothing is
computed, so that a model of any size is predicted in seconds on any machine. What the prediction
leaves out: buffers inside of operators, gaps of the allocator, and the libraries.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.arithmetic import sum_of_means
from benchmarks.measure import peak_memory_cpu, run_fresh
from benchmarks.models import Candidate, shipped

M_MMAP_THRESHOLD = -3  # of mallopt(3)
ADAMW_STATES = 2  # moving averages, each as large as the weights
# Stages of the backbone whose blocks are recomputed, and whether those of the pyramid are.
CHECKPOINTING = dict(
    none=((), False),
    attention=((2,), False),
    backbone=((0, 1, 2), False),
    pyramid=((), True),
    all=((0, 1, 2), True),
)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training step takes with AdamW.

    Args:
        weights: Of all parameters that train, and buffers.
        teacher: Of the EMA teacher.
        optimizer: State of AdamW.
        step: What a step takes at most on top of these: activations, gradients, and the tensors
            that come and go.
    """

    weights: int
    teacher: int
    optimizer: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.teacher + self.optimizer + self.step


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators make, and takes off those that are given back.

    Attributes:
        peak: Most bytes at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what was there before."""
        for tensor in tensors:
            self.known.add(tensor.untyped_storage())

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, count: int) -> None:
        self.live -= count


@contextmanager
def without_contents(model: nn.Module) -> Iterator[None]:
    """A context for a model on device `meta`, in which it and new tensors seem to be on the CPU."""
    with FakeTensorMode():
        for module in model.modules():
            for name, old in module._parameters.items():
                if old is not None:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    module._parameters[name] = nn.Parameter(new, old.requires_grad)
            for name, old in module._buffers.items():
                if old is not None:
                    module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
        yield


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that share memory once."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def predict(model: nn.Module, loss: Callable[[nn.Module], Tensor], dtype: str) -> Footprint:
    """Run a forward and a backward pass of a model on `meta` and see what it takes.

    Args:
        model: In training mode.
        loss: Makes the images and gives the loss.
        dtype: `fp32`, or `amp` for autocast to bfloat16.
    """
    with without_contents(model):
        parameters = list(model.parameters())
        teacher = getattr(model, 'teacher', None)
        teacher_bytes = 0 if teacher is None else size_of(teacher.state_dict().values())
        weights = size_of([*parameters, *model.buffers()]) - teacher_bytes
        trained = sum(p.nbytes for p in parameters if p.requires_grad)
        with LiveBytes() as live:
            live.ignore([*parameters, *model.buffers()])
            with torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'amp'):
                value = loss(model)
            value.backward()
    return Footprint(weights, teacher_bytes, ADAMW_STATES * trained, live.peak)


@dataclass(frozen=True)
class Training:
    """What is trained.

    Args:
        model: Name in `benchmarks.models.MODELS`; `hivit-*` for pre-training.
        size: Height and width of the images.
        batch: Images on one device.
        dtype: `fp32` or `amp`.
        checkpointing: Blocks that are recomputed, a key of `CHECKPOINTING`.
        pretrain: Masked pre-training with its EMA teacher; else backbone and pyramid, without
            the head of a task.
    """

    model: str
    size: tuple[int, int]
    batch: int
    dtype: str = 'fp32'
    checkpointing: str = 'none'
    pretrain: bool = False

    def build(self) -> nn.Module:
        """The model, in training mode."""
        if self.pretrain:
            from benchmarks.pretrain import pretraining_config  # needs mmpretrain

            cfg = pretraining_config(self.model.removeprefix('hivit-'), self.size, self.dtype)
            init_default_scope(cfg.default_scope)
            model = MODELS.build(cfg.model)
            model.teacher._started = True  # asks the device else
        else:
            model = shipped(Candidate(self.model, 'dense'))
        model.backbone.with_cp, model.neck.with_cp = CHECKPOINTING[self.checkpointing]
        return model.train()

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of random images."""
        images = torch.randn(self.batch, 3, *self.size)
        return sum(model.loss(images).values()) if self.pretrain else sum_of_means(model(images))

    def predict(self) -> Footprint:
        """See :func:`predict`."""
        return _predict_training(self)

    def measure(self) -> int:
        """Bytes of a step as :attr:`Footprint.step` has them, by doing it on the CPU (Linux)."""
        printed = run_fresh([json.dumps(asdict(self))], 'benchmarks.footprint')
        return int(printed.split()[-1])  # after what libraries say


@functools.cache
def _predict_training(training: Training) -> Footprint:
    with torch.device('meta'):
        model = training.build()
    return predict(model, training.loss, training.dtype)


def largest_batch(training: Training, limit: int) -> int:
    """Images of a batch that a device of `limit` bytes has room for; 0 if not even one.

    Twice as many until there is no room, then in proportion, which is safe: the memory of one
    more image rises until activations outweigh gradients, and is the same from there on.
    """

    def total(batch: int) -> int:
        return replace(training, batch=batch).predict().total

    count, taken = 1, total(1)
    if taken > limit:
        return 0
    while (next_taken := total(2 * count)) <= limit:
        count, taken = 2 * count, next_taken
    return count + count * (limit - taken) // (next_taken - taken)


def main(spec: str) -> None:
    """Print the bytes of a step of a training on the CPU."""
    given = json.loads(spec)
    training = Training(**given | dict(size=tuple(given['size'])))
    # Tensors of 64 KiB and more go back when they are freed, so that no gaps are measured.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    torch.manual_seed(0)
    model = training.build()

    def step() -> None:
        with torch.autocast('cpu', torch.bfloat16, enabled=training.dtype == 'amp'):
            loss = training.loss(model)
        loss.backward()

    step()  # libraries make their own buffers at the first call with new shapes
    model.zero_grad()
    print(peak_memory_cpu(step))


if __name__ == '__main__':
    main(*sys.argv[1:])
