"""iTPN and Fast-iTPN for OpenMMLab: backbones, pyramid, integral pre-training, acceleration.

Write `type='itpn_mm.HiViT'` into a config of mmpretrain, mmdet, mmseg or mmrotate; the scope alone
makes mmengine import what it needs. `python -m itpn_mm doctor` says what can run here.

Sections, equations, tables and figures that are cited without a name are those of the Fast-iTPN
paper, arXiv 2211.12735.

Public is what stands in the `__all__` of the subpackages, of `itpn_mm.recipes` and of
`itpn_mm.registry`: what a config names, or a program imports. All else may change.
"""

from .version import __version__

__all__ = ['__version__']
