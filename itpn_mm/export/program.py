"""Tracing a model by torch.export, with any number of images."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

MAX_BATCH = 2**16


def trace(model: nn.Module, images: Tensor) -> ExportedProgram:
    """The program of a model for images of one size, and of any batch from 1.

    Args:
        model: A model in evaluation mode, from images to a tuple of tensors.
        images: An example (B, C, H, W), B at least 2: a batch of 1 would be taken for a constant.

    Raises:
        ValueError: The model is in training mode, or the example is a single image.
    """
    if model.training:
        raise ValueError('`model` is in training mode; call `model.eval()` before')
    if images.ndim != 4 or len(images) < 2:
        raise ValueError(
            f'`images` must be (B, C, H, W) with B of at least 2, but got {tuple(images.shape)}'
        )
    # torch 2.5 and 2.6 decompose attention in `export`; later ones leave it whole there.
    export = getattr(torch.export, 'export_for_training', torch.export.export)
    batch = Dim('batch', min=1, max=MAX_BATCH)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model(images)  # a message of the model is clearer here, and SciPy's tables are made
        program = export(model, (images,), dynamic_shapes=({0: batch},), strict=False)
    # torch 2.5 keeps `torch.no_grad` as nodes, which it then cannot save.
    for node in list(program.graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def save_program(program: ExportedProgram, path: str | Path) -> None:
    """Write a program to a `.pt2` file.

    `torch.export.load` may unpickle: load files of your own only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.export.save(program, str(path))


def load_program(path: str | Path) -> nn.Module:
    """The module of a `.pt2` file of one's own, see :func:`save_program`."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.export.load(str(path)).module()
