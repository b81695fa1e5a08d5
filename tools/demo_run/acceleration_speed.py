"""How fast the detector of the acceleration study is under each setting."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from mmengine.runner import Runner

from .acceleration import Chain
from .acceleration_plan import PARTS, SETTING_NAMES

ROUNDS = 15


def measure(chain: Chain, rounds: int = ROUNDS) -> dict:
    """Seconds of a pass over each of `PARTS`, for the whole detector and for its backbone.

    All settings take turns in every round, so that what else the machine does meets them alike.

    Args:
        chain: Dense fine-tuning that is complete.
        rounds: Repeats.

    Returns:
        By part: `images`, and `detector` and `backbone`, lists of seconds by setting.
    """
    found = {}
    for part in PARTS:
        runners = {setting: tested(chain, setting, part) for setting in SETTING_NAMES}
        batches = list(runners['dense'].test_dataloader)
        found[part] = {
            'images': sum(len(batch['inputs']) for batch in batches),
            **take_turns(
                {
                    'detector': {s: detect(runner, batches) for s, runner in runners.items()},
                    'backbone': {s: encode(runner, batches) for s, runner in runners.items()},
                },
                rounds,
            ),
        }
    return found


def tested(chain: Chain, setting: str, part: str) -> Runner:
    """A runner that was run once: its model has the weights and is warm."""
    runner = chain.tester(setting, part)
    runner.test()
    return runner


def detect(runner: Runner, batches: Sequence[dict]) -> Callable[[], None]:
    """A pass of the whole detector: from images to boxes and masks of their size."""

    def run() -> None:
        for batch in batches:
            runner.model.test_step(batch)

    return run


def encode(runner: Runner, batches: Sequence[dict]) -> Callable[[], None]:
    """A pass of the backbone alone."""
    model = runner.model
    inputs = [model.data_preprocessor(batch, False)['inputs'] for batch in batches]

    def run() -> None:
        for images in inputs:
            model.backbone(images)

    return run


@torch.no_grad()
def take_turns(
    groups: Mapping[str, Mapping[str, Callable[[], None]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Run every function of every group once a round; their seconds, a list of one a round."""
    seconds = {group: {name: [] for name in runs} for group, runs in groups.items()}
    for _ in range(rounds):
        for group, runs in groups.items():
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[group][name].append(time.perf_counter() - start)
    return seconds


def summarise(found: Mapping[str, dict], part: str, setting: str) -> dict[str, float]:
    """Medians over the rounds of `measure`; a ratio is that of the same round.

    `images_per_second` of the detector, `backbone_ms` an image, `speedup` of the detector over the
    dense one, `backbone_speedup`.
    """
    images, detector, backbone = (found[part][key] for key in ('images', 'detector', 'backbone'))
    return {
        'images_per_second': round(images / statistics.median(detector[setting]), 2),
        'backbone_ms': round(1000 * statistics.median(backbone[setting]) / images, 2),
        'speedup': round(median_ratio(detector['dense'], detector[setting]), 3),
        'backbone_speedup': round(median_ratio(backbone['dense'], backbone[setting]), 3),
    }


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of the ratios of pairs."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))
