"""Checkpoints: read safely, brought into one layout of names, resized, loaded with a report."""

from .architecture import inspect
from .hooks import resize_on_load, resize_positions
from .io import LoadReport, read_checkpoint, read_file
from .pretrained import PretrainedModule, load_pretrained
from .remap import remap
from .report import RemapReport
from .snippet import config_text, model_config

__all__ = [
    'LoadReport',
    'PretrainedModule',
    'RemapReport',
    'config_text',
    'inspect',
    'load_pretrained',
    'model_config',
    'read_checkpoint',
    'read_file',
    'remap',
    'resize_on_load',
    'resize_positions',
]
