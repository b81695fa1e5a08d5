"""The OpenMMLab packages itpn_mm plugs into and what to install for each; standard library only."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

# Distribution of each import name on the two stacks; None where a stack has no such package.
DISTRIBUTIONS: dict[str, dict[str, str | None]] = {
    'mmengine': {'onedl': 'onedl-mmengine', 'openmmlab': 'mmengine'},
    'mmcv': {'onedl': 'onedl-mmcv', 'openmmlab': 'mmcv'},
    'mmpretrain': {'onedl': 'onedl-mmpretrain', 'openmmlab': 'mmpretrain'},
    'mmdet': {'onedl': 'onedl-mmdetection', 'openmmlab': 'mmdet'},
    'mmseg': {'onedl': 'onedl-mmsegmentation', 'openmmlab': 'mmsegmentation'},
    'mmrotate': {'onedl': 'onedl-mmrotate', 'openmmlab': None},
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
            'RandomMasking',
            'MIMDecoder',
            'PixelReconstructionHead',
            'MFMHead',
            'EMATeacher',
        ),
    ),
    Part('detection', None, ('mmcv', 'mmdet')),
    Part('segmentation', None, ('mmcv', 'mmseg')),
    Part('rotated detection', None, ('mmcv', 'mmdet', 'mmrotate')),
)


def is_installed(name: str) -> bool:
    """Tell whether the top-level package `name` can be found; it is not imported."""
    return importlib.util.find_spec(name) is not None


def describe_distributions(name: str) -> str:
    """Name the distribution(s) that bring import name `name`, as `pip install` wants them."""
    found = [d for d in DISTRIBUTIONS.get(name, {}).values() if d]
    return ' or '.join(f'`{d}`' for d in found) if found else f'`{name}`'
