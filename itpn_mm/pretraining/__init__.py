"""Integral pre-training, masked image and feature modelling. Needs mmpretrain."""

from .decoder import MIMDecoder
from .heads import MFMHead, PixelReconstructionHead
from .itpn import iTPN
from .masking import PatchMask, RandomMasking
from .teachers import EMATeacher

__all__ = [
    'EMATeacher',
    'MFMHead',
    'MIMDecoder',
    'PatchMask',
    'PixelReconstructionHead',
    'RandomMasking',
    'iTPN',
]
