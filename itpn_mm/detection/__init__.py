"""Parts of detectors; needs mmdet."""

from .dino import DINO
from .maskdino import MaskDINO, MaskDINOFusionHead, MaskDINOHead

__all__ = ['DINO', 'MaskDINO', 'MaskDINOFusionHead', 'MaskDINOHead']
