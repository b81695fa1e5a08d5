"""Checkpoints: read safely, brought into one layout of names, resized, loaded with a report."""

from .architecture import config_lines, inspect
from .hooks import resize_on_load, resize_positions
from .io import LoadReport, read_checkpoint
from .pretrained import PretrainedModule, load_pretrained
from .remap import Drop, RemapReport, Rename, remap

__all__ = [
    'Drop',
    'LoadReport',
    'PretrainedModule',
    'RemapReport',
    'Rename',
    'config_lines',
    'inspect',
    'load_pretrained',
    'read_checkpoint',
    'remap',
    'resize_on_load',
    'resize_positions',
]
