"""The plan of the acceleration study: what is trained and evaluated, with which settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from itpn_mm.acceleration.settings import SETTINGS

CONFIG = 'configs/detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei.py'
SEEDS = (0, 1, 2)
EPOCHS = 12  # half of the demo's; the same for all

# The dense fine-tuning is evaluated under each of these; the others under their own.
SETTING_NAMES = ('dense', 'migration-20', 'migration-40', 'windows', 'gathering', 'all')
TRAINED = ('dense', 'migration-40', 'windows', 'all')
# A tile of 128 pixels is 8x8 patches: 4 windows of 4x4. With four layers the default schedule,
# every fourth, would be the first layer alone; the paper's spreads the share over all of them.
GEOMETRY = dict(window_size=4, schedule=dict(every=1))

# What is evaluated: the tiles of the held-out region, and that region as one picture.
PARTS = {'tiles': 'tiles of 128 x 128 pixels', 'strip': 'one picture of 128 x 512 pixels'}
# Seconds of a task of each kind on one core, for the time that is left.
COSTS = {'train': 250.0, 'evaluate': 5.0}


def accelerate(backbone: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Config of a backbone under a setting; `'dense'` leaves it as it is."""
    if setting == 'dense':
        return dict(backbone)
    return dict(type='itpn_mm.TokenMigration', backbone=backbone, **GEOMETRY, **SETTINGS[setting])


def chains(seeds: Sequence[int] = SEEDS) -> list[tuple[str, int]]:
    """All pairs of what is switched on in the fine-tuning and a seed."""
    return [(trained, seed) for seed in seeds for trained in TRAINED]


def chain_name(trained: str, seed: int) -> str:
    """Name of such a pair: of its log, and the first part of the names of its tasks."""
    return f'{trained}-seed{seed}'


def settings_of(trained: str) -> tuple[str, ...]:
    """Settings that a fine-tuning is evaluated under."""
    return SETTING_NAMES if trained == 'dense' else (trained,)


def tasks_of(trained: str) -> tuple[str, ...]:
    """Names of the tasks of a fine-tuning, in their order."""
    return ('train', *(f'evaluate-{setting}' for setting in settings_of(trained)))


def costs(seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    """Expected seconds of every task of all chains, by `<trained>-seed<seed>/<task>`."""
    return {
        f'{chain_name(trained, seed)}/{task}': COSTS[task.partition('-')[0]]
        for trained, seed in chains(seeds)
        for task in tasks_of(trained)
    }
