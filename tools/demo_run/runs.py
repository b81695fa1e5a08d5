"""A study's trainings and tests by the stock runner: what all of them change in a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def study_options(seed: int, epochs: int) -> dict[str, Any]:
    """Config options of a training of a study that counts epochs."""
    return {
        **_common_options(seed, epochs),
        'train_cfg.max_epochs': epochs,
        'log_processor.by_epoch': False,  # its progress is counted in iterations
    }


def iteration_options(seed: int, iterations: int) -> dict[str, Any]:
    """Config options of a training of a study that counts iterations."""
    return {**_common_options(seed, iterations), 'train_cfg.max_iters': iterations}


def _common_options(seed: int, length: int) -> dict[str, Any]:
    """The second schedule is a cosine over all of the training.

    One thread loads the images and computes: as many trainings as there are cores run beside it.
    """
    options = {
        'randomness.seed': seed,
        'param_scheduler.1.T_max': length,
        'param_scheduler.1.end': length,
        'default_hooks.checkpoint.interval': length,
    }
    for loader in LOADERS:
        options |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
    return options


def initial_weights(pretrained: Path | None) -> dict[str, Any]:
    """Config options that load backbone and pyramid, or leave them random."""
    keys = [f'model.{module}.init_cfg' for module in ('backbone', 'neck')]
    if pretrained is None:
        return dict.fromkeys(keys)
    return {f'{key}.checkpoint': str(pretrained) for key in keys}


def train(cfg: Config, folder: Path, name: str) -> Mapping[str, float]:
    """Train in a folder; the mean of the last losses."""
    cfg.work_dir, cfg.experiment_name = str(folder), name
    runner = Runner.from_cfg(cfg)
    runner.train()
    return {'loss': float(runner.message_hub.log_scalars['train/loss'].mean(25))}


def make_tester(cfg: Config, trained: Path, folder: Path, name: str) -> Runner:
    """The runner that tests the last checkpoint of the training in `trained`."""
    cfg.work_dir, cfg.experiment_name = str(folder), name
    cfg.load_from = (trained / 'last_checkpoint').read_text().strip()
    return Runner.from_cfg(cfg)
