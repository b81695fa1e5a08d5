"""Checkpoints: read safely, brought into one layout of names, resized, loaded with a report."""

from .convert import Checkpoint, open_checkpoint
from .io import read_checkpoint
from .layouts import remap
from .pretrained import PretrainedModule, load_pretrained
from .report import LoadReport, RemapReport

__all__ = [
    'Checkpoint',
    'LoadReport',
    'PretrainedModule',
    'RemapReport',
    'load_pretrained',
    'open_checkpoint',
    'read_checkpoint',
    'remap',
]
