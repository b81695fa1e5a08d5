"""The plan of the study: what is pre-trained, what is fine-tuned from it, and how often."""

from dataclasses import dataclass, field
from typing import Any

from .folds import SIDES

SEEDS = (0, 1, 2, 3, 4)
FAMILIES = {'itpn': 'iTPN', 'fast-itpn': 'Fast-iTPN'}
TASKS = {
    'classes': ('nuclei, classes of pixels, UPerNet', 'mIoU'),
    'instances': ('nuclei, Mask R-CNN', 'mask AP50'),
    'trees': ('trees, Faster R-CNN', 'box AP50'),
}


@dataclass(frozen=True)
class Pretraining:
    """One way to pre-train.

    Args:
        label: For people.
        options: Config options over those of :func:`.configs.pretraining`, by dotted path.
        tasks: What is fine-tuned from it.
        families: Backbones it is done with.
        pyramid: Whether there is a pyramid to load.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ('classes',)
    families: tuple[str, ...] = tuple(FAMILIES)
    pyramid: bool = True


ALL = tuple(TASKS)
NO_MFM = {'model.mfm_head': None, 'model.teacher': None, 'custom_hooks': []}
CONV = {'model.neck.type': 'itpn_mm.ConvPyramidNeck'}
FIRST = ('itpn',)  # what the paper leaves open is compared with one family

PRETRAININGS = {
    'none': Pretraining('none: random weights', tasks=ALL, pyramid=False),
    'mim': Pretraining(
        'backbone alone, MIM',
        {**NO_MFM, 'model.neck.out_strides': (16,), 'model.decoder.strides': (16,)},
        tasks=ALL,
        pyramid=False,
    ),
    'integral': Pretraining('integral: MIM and MFM', tasks=ALL),
    'no-mfm': Pretraining('integral, MIM only', NO_MFM),
    'conv': Pretraining('integral, convolutions', CONV),
    'conv-no-mfm': Pretraining('integral, convolutions, MIM only', {**CONV, **NO_MFM}),
    'visible': Pretraining(
        'MFM at visible positions',
        {'model.mfm_head.positions': 'visible', 'model.mfm_head.in_channels': 64},
        families=FIRST,
    ),
    'raw-targets': Pretraining(
        'targets not normalised', {'model.mfm_head.norm_targets': False}, families=FIRST
    ),
    'whole-image': Pretraining(
        'teacher sees the whole image', {'model.teacher.context': 'image'}, families=FIRST
    ),
    'lambda-0.1': Pretraining('λ = 0.1', {'model.mfm_head.loss_weight': 0.1}, families=FIRST),
    'lambda-1': Pretraining('λ = 1', {'model.mfm_head.loss_weight': 1.0}, families=FIRST),
    'momentum-0.98': Pretraining('momentum 0.98', {'model.teacher.momentum': 0.98}, families=FIRST),
    'momentum-0.999': Pretraining(
        'momentum 0.999', {'model.teacher.momentum': 0.999}, families=FIRST
    ),
    'fixed-views': Pretraining('pixels, one fixed view of each crop', tasks=('classes',)),
    'teacher': Pretraining('features of a ViT-S/14, the same views'),
}


@dataclass(frozen=True, order=True)
class Chain:
    """A pre-training with one seed, and what is fine-tuned from it, in one process."""

    seed: int
    family: str
    pretraining: str

    @property
    def name(self) -> str:
        return f'{self.family}_{self.pretraining}_seed{self.seed}'

    @property
    def side(self) -> str:
        """The border that is held out."""
        return SIDES[self.seed % len(SIDES)]

    def finetunings(self, tasks: tuple[str, ...]) -> list[tuple[str, bool]]:
        """Pairs of a task and whether the pyramid is loaded."""
        plan = PRETRAININGS[self.pretraining]
        pyramids = (True, False) if self.pretraining == 'integral' else (plan.pyramid,)
        return [(task, loaded) for task in plan.tasks if task in tasks for loaded in pyramids]


def chains() -> list[Chain]:
    """All chains; those of a seed together, so that what is there at any time is balanced."""
    return [
        Chain(seed, family, name)
        for seed in SEEDS
        for name, plan in PRETRAININGS.items()
        for family in plan.families
    ]
