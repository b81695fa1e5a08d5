"""Backbones with their pyramid, and classifiers, as ONNX files and programs of torch.export."""

from .files import Exported, export_model, open_file
from .parts import ExportPart

__all__ = ['ExportPart', 'Exported', 'export_model', 'open_file']
