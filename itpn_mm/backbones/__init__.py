"""Backbones, registered for every OpenMMLab package."""

from .fast_itpn import FastiTPN
from .hivit import HiViT

__all__ = ['FastiTPN', 'HiViT']
