"""The plan of the demo on aerial photographs: which detectors are trained, from what, how often."""

from dataclasses import dataclass

from .chains import all_chains, all_costs


@dataclass(frozen=True)
class Detector:
    """A detector of the demo.

    Args:
        label: Its name for people.
        config: Pattern of its config; the name tells the schedule, which may change.
        threshold: Score from which a prediction is drawn.
        seconds: Expected of a training on one core, for the time that is left.
    """

    label: str
    config: str
    threshold: float
    seconds: float


@dataclass(frozen=True)
class Study:
    """What `tools/demo.sh` runs under a name.

    Args:
        data: The data set.
        detectors: By name, which is that of their folder.
        metrics: Names of the results by what the runner calls them, the first one as the main one.
        oriented: Whether boxes are.
        validates: Whether a training evaluates now and then, and not only at its end.
    """

    data: str
    detectors: dict[str, Detector]
    metrics: dict[str, str]
    oriented: bool
    validates: bool


STUDIES = {
    'detection': Study(
        data='aerial',
        detectors={
            'faster-rcnn': Detector(
                'Faster R-CNN', 'configs/detection/faster-rcnn_hivit-demo-*_aerial.py', 0.5, 260.0
            ),
            'dino': Detector(
                'DINO', 'configs/detection/dino-4scale_hivit-demo-*_aerial.py', 0.3, 440.0
            ),
        },
        metrics={'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50'},
        oriented=False,
        validates=True,
    ),
    'rotated': Study(
        data='aerial_rotated',
        detectors={
            'rotated-faster-rcnn': Detector(
                'Rotated Faster R-CNN',
                'configs/rotated_detection/rotated-faster-rcnn-le90_hivit-demo-*_aerial.py',
                0.5,
                250.0,
            ),
        },
        metrics={'dota/AP50': 'AP50'},
        oriented=True,
        # mmrotate evaluates in processes that take half a minute to start.
        validates=False,
    ),
}


def chains(study: str, compare: bool) -> list[tuple[str, str, int]]:
    """All triples of a detector, what it starts from, and a seed."""
    return all_chains(STUDIES[study].detectors, compare)


def costs(study: str, compare: bool) -> dict[str, float]:
    """Expected seconds of every task, by `<detector>-<start>-seed<seed>/<task>`."""
    seconds = {name: detector.seconds for name, detector in STUDIES[study].detectors.items()}
    return all_costs(seconds, compare)
