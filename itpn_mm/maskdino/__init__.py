"""MaskDINO, for the heads of mmdet and mmseg; needs mmdet.

Nothing in here is registered: a config sets the arguments of these classes through those of
`itpn_mm.MaskDINOHead` and `itpn_mm.MaskDINODecodeHead`.
"""

from .criterion import MaskDINOCriterion
from .decoder import MaskDINODecoder
from .denoising import QueryDenoiser
from .head import MaskDINOBase
from .pixel_decoder import MaskDINOPixelDecoder
from .predictor import MaskDINOPredictor

__all__ = [
    'MaskDINOBase',
    'MaskDINOCriterion',
    'MaskDINODecoder',
    'MaskDINOPixelDecoder',
    'MaskDINOPredictor',
    'QueryDenoiser',
]
