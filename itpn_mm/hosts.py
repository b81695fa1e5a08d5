"""The OpenMMLab packages itpn_mm plugs into and what to install for each; standard library only."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

STACKS = ('onedl', 'openmmlab')

# The distribution of each import name on the two stacks, in the version that is tested (the pins of
# requirements/); None where a stack has no such package.
DISTRIBUTIONS: dict[str, dict[str, tuple[str, str] | None]] = {
    'torch': {'onedl': ('torch', '2.12.1'), 'openmmlab': ('torch', '2.5.1')},
    'torchvision': {'onedl': ('torchvision', '0.27.1'), 'openmmlab': ('torchvision', '0.20.1')},
    'safetensors': {'onedl': ('safetensors', '0.8.0'), 'openmmlab': ('safetensors', '0.8.0')},
    'mmengine': {'onedl': ('onedl-mmengine', '0.10.12'), 'openmmlab': ('mmengine', '0.10.7')},
    'mmcv': {'onedl': ('onedl-mmcv', '2.3.6'), 'openmmlab': ('mmcv', '2.1.0')},
    'mmpretrain': {'onedl': ('onedl-mmpretrain', '1.3.6'), 'openmmlab': ('mmpretrain', '1.2.0')},
    'mmdet': {'onedl': ('onedl-mmdetection', '3.5.1'), 'openmmlab': ('mmdet', '3.3.0')},
    'mmseg': {
        'onedl': ('onedl-mmsegmentation', '1.4.2'),
        'openmmlab': ('mmsegmentation', '1.2.2'),
    },
    'mmrotate': {'onedl': ('onedl-mmrotate', '1.2.1'), 'openmmlab': None},
}


@dataclass(frozen=True)
class Part:
    """A part of itpn_mm that needs more than torch and mmengine.

    Args:
        name: What a reader calls it.
        module: The module of ours that registers its components; None for a part made of
            configs only.
        hosts: Import names of the packages it needs.
        components: Registered names found in `module`.
    """

    name: str
    module: str | None
    hosts: tuple[str, ...]
    components: tuple[str, ...] = ()

    def missing_hosts(self) -> list[str]:
        """Return the import names of `hosts` that are not installed."""
        return [host for host in self.hosts if not is_installed(host)]


# A part to come is one more row here.
PARTS = (
    Part(
        'pre-training',
        'itpn_mm.pretraining',
        ('mmcv', 'mmpretrain'),
        (
            'iTPN',
            'iTPNDistill',
            'RandomMasking',
            'LevelSum',
            'MIMDecoder',
            'PixelReconstructionHead',
            'MFMHead',
            'CLIPDistillHead',
            'AuxiliaryHead',
            'EMATeacher',
            'CLIPTeacher',
            'FeatureTeacher',
            'CachedTeacher',
        ),
    ),
    Part(
        'detection',
        'itpn_mm.detection',
        ('mmcv', 'mmdet'),
        ('DINO', 'MaskDINO', 'MaskDINOHead', 'MaskDINOFusionHead'),
    ),
    Part('segmentation', None, ('mmcv', 'mmseg')),
    Part(
        'MaskDINO in mmseg',
        'itpn_mm.segmentation',
        ('mmcv', 'mmdet', 'mmseg'),
        ('MaskDINODecodeHead',),
    ),
    Part('rotated detection', None, ('mmcv', 'mmdet', 'mmrotate')),
)


def is_installed(name: str) -> bool:
    """Tell whether the top-level package `name` can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # an import hook that blocks the package says so here already
        return False


def describe_distributions(name: str) -> str:
    """Name the distributions that bring import name `name`: '`onedl-mmcv` or `mmcv`'."""
    return ' or '.join(f'`{found[0]}`' for found in DISTRIBUTIONS[name].values() if found)
