"""Necks, registered for every OpenMMLab package."""

from .global_pool import GlobalAveragePoolNorm
from .transformer_pyramid import TransformerPyramidNeck

__all__ = ['GlobalAveragePoolNorm', 'TransformerPyramidNeck']
