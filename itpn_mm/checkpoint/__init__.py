"""Checkpoints: read safely, brought into one layout of names, resized, loaded with a report."""

from .architecture import config_lines, inspect
from .hooks import resize_on_load, resize_positions
from .io import LoadReport, read_checkpoint
from .pretrained import PretrainedModule, load_pretrained
from .remap import RemapReport, remap

__all__ = [
    'LoadReport',
    'PretrainedModule',
    'RemapReport',
    'config_lines',
    'inspect',
    'load_pretrained',
    'read_checkpoint',
    'remap',
    'resize_on_load',
    'resize_positions',
]
