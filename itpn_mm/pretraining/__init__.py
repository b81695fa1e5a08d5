"""Integral pre-training, masked image and feature modelling. Needs mmpretrain."""

from .cached_teacher import CachedTeacher
from .clip_teacher import CLIPTeacher
from .decoder import LevelReader, LevelSum, MIMDecoder
from .distill import iTPNDistill
from .distill_heads import AuxiliaryHead, CLIPDistillHead
from .feature_teacher import FeatureTeacher
from .frozen_teacher import FrozenTeacher
from .heads import MFMHead, PixelReconstructionHead
from .itpn import iTPN
from .masking import PatchMask, RandomMasking
from .teachers import EMATeacher

__all__ = [
    'AuxiliaryHead',
    'CLIPDistillHead',
    'CLIPTeacher',
    'CachedTeacher',
    'EMATeacher',
    'FeatureTeacher',
    'FrozenTeacher',
    'LevelReader',
    'LevelSum',
    'MFMHead',
    'MIMDecoder',
    'PatchMask',
    'PixelReconstructionHead',
    'RandomMasking',
    'iTPN',
    'iTPNDistill',
]
