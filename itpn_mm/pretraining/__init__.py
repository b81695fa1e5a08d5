"""Integral pre-training, masked image and feature modelling. Needs mmpretrain."""

from .clip_teacher import CLIPTeacher
from .decoder import LevelSum, MIMDecoder
from .distill import iTPNDistill
from .distill_heads import AuxiliaryHead, CLIPDistillHead
from .heads import MFMHead, PixelReconstructionHead
from .itpn import iTPN
from .masking import PatchMask, RandomMasking
from .teachers import EMATeacher

__all__ = [
    'AuxiliaryHead',
    'CLIPDistillHead',
    'CLIPTeacher',
    'EMATeacher',
    'LevelSum',
    'MFMHead',
    'MIMDecoder',
    'PatchMask',
    'PixelReconstructionHead',
    'RandomMasking',
    'iTPN',
    'iTPNDistill',
]
