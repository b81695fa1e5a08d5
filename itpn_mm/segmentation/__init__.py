"""Heads of segmentors; needs mmseg, and mmdet for its layers and losses."""

from .maskdino import MaskDINODecodeHead

__all__ = ['MaskDINODecodeHead']
