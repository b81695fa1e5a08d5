"""From a model to a file, and what the file says of the same pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .onnx_file import require, save_onnx
from .parts import ExportPart
from .program import load_program, save_program, trace

SUFFIXES = ('.onnx', '.pt2')


@dataclass(frozen=True)
class Exported:
    """A file that has been written.

    Args:
        path: The file.
        part: The module it was made of.
        size: Height and width of the pictures it takes.
        shapes: Shape of each output by name, without the batch.
    """

    path: Path
    part: ExportPart
    size: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]

    def compare(self, batches: Sequence[int] = (1, 3)) -> dict[int, float]:
        """Largest difference between the file and the model, over all outputs, by batch.

        It is relative to the largest value of an output where that is above 1.

        Args:
            batches: Numbers of random pictures to run; traced was one of 2.

        Raises:
            ModuleNotFoundError: The file is ONNX, and onnxruntime is not installed.
        """
        run, differences = open_file(self.path), {}
        for batch in batches:
            images = self.part.example(self.size, batch, seed=batch)
            with torch.no_grad():
                pairs = zip(self.part(images), run(images), strict=True)
                differences[batch] = max(difference(a, b) for a, b in pairs)
        return differences


def difference(expected: Tensor, given: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest value expected if it is above 1.

    Raises:
        ValueError: Their shapes differ.
    """
    if expected.shape != given.shape:
        raise ValueError(
            f'the model gives {tuple(expected.shape)}, but the file {tuple(given.shape)}'
        )
    scale = max(1.0, expected.abs().max().item())
    return (expected - given).abs().max().item() / scale


def check_path(path: str | Path) -> Path:
    """The path of a file to write.

    Raises:
        ValueError: Its suffix is not one of :data:`SUFFIXES`.
        ModuleNotFoundError: The package that writes it is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f'the file to write must end in one of {SUFFIXES}, but got {str(path)!r}')
    if path.suffix == '.onnx':
        require('onnx')
    return path


def export_model(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int] | None = None,
    part: str | None = None,
) -> Exported:
    """Write a model, or its backbone and pyramid, to ONNX or torch.export, by the suffix of a path.

    The file takes pictures `images` (batch, 3, height, width) of float32 from 0 to 255, any number
    of them and of one size, and normalises them itself.

    Args:
        model: Model of any OpenMMLab package with a backbone of ours, on the CPU and in float32.
            It is set to evaluation mode.
        path: The file, with one of the suffixes :data:`SUFFIXES`.
        size: Height and width; ``None``: the size that the backbone was built for.
        part: See :class:`ExportPart`.

    Raises:
        ValueError: An argument does not fit the model.
        ModuleNotFoundError: The package onnx is needed and not installed.
    """
    path, part = check_path(path), ExportPart(model, part)
    size = tuple(size or part.default_size)
    part.check_size(size)
    program = trace(part, part.example(size))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.onnx':
        save_onnx(program, path, part.output_names)
    else:
        save_program(program, path)
    [output] = (node for node in program.graph.nodes if node.op == 'output')
    shapes = [tuple(result.meta['val'].shape[1:]) for result in output.args[0]]
    return Exported(path, part, size, dict(zip(part.output_names, shapes, strict=True)))


def open_file(path: str | Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """A function from pictures to outputs that runs a file of ours on the CPU."""
    path = check_path(path)
    if path.suffix == '.pt2':
        return load_program(path)
    require('onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {'images': x.numpy()})]
