"""Backbones, registered for every OpenMMLab package."""

from .hivit import HiViT

__all__ = ['HiViT']
