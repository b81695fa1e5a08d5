"""Single rows of the study, by the stock runner."""

import json
import os
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from . import configs
from .plan import Chain


class Curve(Hook):
    """Notes the losses of every iteration, and what each evaluation gives."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.points: list[tuple[int, dict[str, float]]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Note the losses."""
        for name, value in outputs.items():
            if 'loss' in name:
                self.losses.setdefault(name, []).append(float(value))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note the metrics."""
        self.points.append((runner.iter, {k: float(v) for k, v in metrics.items()}))


def run(cfg: Config, folder: Path, name: str) -> tuple[Curve, float]:
    """Train in `folder`; the curve and the seconds it took."""
    cfg.work_dir, cfg.experiment_name = str(folder), name
    curve, begin = Curve(), time.monotonic()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(curve)
    runner.train()
    return curve, time.monotonic() - begin


def means(values: list[float], number: int = 25) -> list[float]:
    """Means of `number` equal parts."""
    parts = min(number, len(values))
    cuts = [round(i * len(values) / parts) for i in range(parts + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in zip(cuts, cuts[1:])]


def write(path: Path, row: dict) -> None:
    """Write a row; it is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    part.write_text(json.dumps(row, indent=1) + '\n')
    os.replace(part, path)


def pretrain(chain: Chain, folder: Path) -> tuple[dict, Path]:
    """The row of the pre-training, and its checkpoint."""
    curve, seconds = run(configs.pretraining(chain), folder, f'{chain.name}_pretrain')
    checkpoint = Path((folder / 'last_checkpoint').read_text().strip())
    losses = {name: means(values) for name, values in curve.losses.items()}
    return dict(losses=losses, seconds=round(seconds, 1)), checkpoint


def finetune(chain: Chain, task: str, checkpoint: Path | None, pyramid: bool, folder: Path) -> dict:
    """The row of a fine-tuning."""
    name = f'{chain.name}_{task}_{"pyramid" if pyramid else "backbone"}'
    cfg = configs.finetuning(chain, task, checkpoint, pyramid)
    curve, seconds = run(cfg, folder, name)
    key, scale = configs.METRICS[task]
    points = [[iteration, scale * metrics[key]] for iteration, metrics in curve.points]
    losses = means(curve.losses['loss'])
    return dict(score=points[-1][1], curve=points, loss=losses, seconds=round(seconds, 1))
