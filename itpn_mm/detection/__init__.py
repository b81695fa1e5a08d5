"""Parts of detectors; needs mmdet."""

from .dino import DINO, QueryPositionHead

__all__ = ['DINO', 'QueryPositionHead']
