"""Backbones with their pyramid, and classifiers, as ONNX files and programs of torch.export."""

from .files import SUFFIXES, Exported, export_model, open_file
from .onnx_file import save_onnx
from .parts import PARTS, ExportPart
from .program import save_program, trace

__all__ = [
    'PARTS',
    'SUFFIXES',
    'ExportPart',
    'Exported',
    'export_model',
    'open_file',
    'save_onnx',
    'save_program',
    'trace',
]
