"""MaskDINO, for the heads of mmdet and mmseg; needs mmdet."""

from .head import MaskDINOBase

__all__ = ['MaskDINOBase']
