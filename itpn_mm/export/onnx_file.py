"""Writing a traced program to an ONNX file."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from itpn_mm.version import __version__

from .graph import GraphWriter
from .ops import ONNX_TYPES, OPSET

IR_VERSION = 8  # the one that belongs to OPSET; ONNX Runtime reads it since 1.12
MAX_BYTES = 2**31 - 1  # of a protobuf message


def require(package: str) -> None:
    """See to it that a package is there.

    Raises:
        ModuleNotFoundError: It is not.
    """
    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f'{package} is not installed; for ONNX: pip install onnx onnxruntime'
        )


def save_onnx(program: ExportedProgram, path: str | Path, names: Sequence[str]) -> None:
    """Write a program, with input `images` and outputs of these names.

    Args:
        program: As :func:`itpn_mm.export.trace` gives it, in float32.
        path: The file.
        names: Names of the outputs, as many as the program has.

    Raises:
        ModuleNotFoundError: The package onnx is not installed.
        ValueError: The model has an operator that is not known, or weights of more than 2 GiB.
    """
    require('onnx')
    import onnx
    from onnx import helper, numpy_helper

    writer = GraphWriter(program)
    size = sum(tensor.nbytes for tensor in writer.constants.values())
    if size > MAX_BYTES - 2**24:  # the nodes need some
        raise ValueError(
            f'{size / 2**30:.1f} GiB of weights do not fit into an ONNX file of at most 2 GiB; '
            'take the suffix .pt2'
        )
    results, outputs = zip(*writer.outputs, strict=True)
    final = [helper.make_node('Identity', [a], [b]) for a, b in zip(results, names, strict=True)]
    [(name, shape)] = writer.inputs
    if name != 'images':
        writer.nodes.insert(0, helper.make_node('Identity', ['images'], [name]))
    kind = ONNX_TYPES[torch.float32]
    graph = helper.make_graph(
        writer.nodes + final,
        'itpn_mm',
        [helper.make_tensor_value_info('images', kind, shape)],
        [helper.make_tensor_value_info(n, kind, s) for n, s in zip(names, outputs, strict=True)],
        [numpy_helper.from_array(t.contiguous().numpy(), n) for n, t in writer.constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='itpn_mm',
        producer_version=__version__,
    )
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
