"""Necks, registered for every OpenMMLab package."""

from .transformer_pyramid import TransformerPyramidNeck

__all__ = ['TransformerPyramidNeck']
