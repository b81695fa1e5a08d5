"""The plan of the demo of segmentation: which models are trained, and what is measured."""

from dataclasses import dataclass

from .chains import all_chains, all_costs


@dataclass(frozen=True)
class Model:
    """A model of the demo.

    Args:
        label: Its name for people.
        config: Pattern of its config; the name tells the schedule, which may change.
        metrics: What its evaluation gives, in percent; the main one first.
        validation: The main one's name in the log of a training.
        scale: What makes percent of the value there.
        seconds: Expected of a training on one core, for the time that is left.
    """

    label: str
    config: str
    metrics: tuple[str, ...]
    validation: str
    scale: float
    seconds: float

    @property
    def semantic(self) -> bool:
        """Whether it gives a class to each pixel; otherwise it finds single nuclei."""
        return self.metrics == SEMANTIC


CLASSES = ('background', 'interior', 'border')
SEMANTIC = ('mIoU', *CLASSES)
INSTANCE = ('mask AP', 'mask AP50', 'box AP', 'box AP50')
MODELS = {
    'upernet': Model(
        'UPerNet',
        'configs/segmentation/upernet_hivit-demo-*_nuclei.py',
        SEMANTIC,
        'mIoU',
        1.0,
        120.0,
    ),
    'maskdino-semantic': Model(
        'MaskDINO, semantic',
        'configs/segmentation/maskdino_hivit-demo-*_nuclei.py',
        SEMANTIC,
        'mIoU',
        1.0,
        75.0,
    ),
    'maskdino-instance': Model(
        'MaskDINO, instances',
        'configs/detection/maskdino_hivit-demo-*_nuclei.py',
        INSTANCE,
        'coco/segm_mAP',
        100.0,
        180.0,
    ),
}


def chains(compare: bool) -> list[tuple[str, str, int]]:
    """All triples of a model, what it starts from, and a seed."""
    return all_chains(MODELS, compare)


def costs(compare: bool) -> dict[str, float]:
    """Expected seconds of every task, by `<model>-<start>-seed<seed>/<task>`."""
    return all_costs({name: model.seconds for name, model in MODELS.items()}, compare)
