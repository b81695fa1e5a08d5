"""A run of a tiny model that draws at random wherever a model can, and has all kinds of state."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn

LENGTH, BATCH = 12, 2
EPOCH = LENGTH // BATCH


@MODELS.register_module(force=True)
class Small(BaseModel):
    """Noise, dropout, batch norm and an EMA teacher; tells its samples as a sum of powers of 2."""

    def __init__(self, norm: str = 'BatchNorm1d') -> None:
        super().__init__(data_preprocessor=dict(type='BaseDataPreprocessor'))
        self.backbone = nn.Sequential(nn.Linear(4, 8), getattr(nn, norm)(8), nn.Dropout(0.3))
        self.teacher = ExponentialMovingAverage(self.backbone, momentum=0.1)

    def forward(self, inputs: Tensor, index: Tensor, mode: str = 'loss') -> Any:
        if mode == 'predict':
            torch.rand(3), random.random(), np.random.rand()
            return [dict(value=self.backbone(inputs).mean())]
        features = self.backbone(inputs + 0.1 * torch.randn_like(inputs))
        with torch.no_grad():
            target = self.teacher.module(inputs)
        scale = 1 + random.random() + np.random.rand()
        return dict(
            loss=scale * (features - target - 1).square().mean(),
            samples=(2.0**index).sum(),
        )


@DATASETS.register_module(force=True)
class Drawn(torch.utils.data.Dataset):
    """Each sample is drawn anew, from all three generators."""

    def __init__(self, length: int = LENGTH) -> None:
        self.length, self.metainfo = length, {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        drawn = [index, random.random(), np.random.rand(), torch.rand(()).item()]
        return dict(inputs=torch.tensor(drawn), index=torch.tensor(index))


@METRICS.register_module(force=True)
class Mean(BaseMetric):
    """A metric of validation that draws too."""

    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        torch.rand(1)
        self.results += [sample['value'].item() for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(mean=sum(results) / len(results))


def small(epochs: int = 2, by_epoch: bool = True, **changes: Any) -> Config:
    """A run by epochs or iterations; `changes` by dotted name with two underscores for a dot."""
    loop = (
        dict(by_epoch=True, max_epochs=epochs)
        if by_epoch
        else dict(by_epoch=False, max_iters=epochs * EPOCH)
    )
    cfg = Config(
        dict(
            model=dict(type='Small'),
            train_dataloader=dict(
                dataset=dict(type='Drawn'),
                batch_size=BATCH,
                num_workers=0,
                sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
                collate_fn=dict(type='default_collate'),
            ),
            train_cfg=loop,
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=[
                dict(type='ExponentialLR', gamma=0.5, by_epoch=by_epoch),
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=EPOCH),
            ],
            default_hooks=dict(
                checkpoint=dict(type='itpn_mm.AtomicCheckpointHook', interval=4, by_epoch=False),
                preflight=dict(type='itpn_mm.PreflightHook'),
                seed=dict(type='itpn_mm.SeedHook'),
                nonfinite=dict(type='itpn_mm.NonFiniteHook'),
            ),
            custom_hooks=[
                dict(type='itpn_mm.EMATeacherHook'),
                dict(type='EMAHook', momentum=0.1),
                dict(type='Record'),
            ],
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            randomness=dict(seed=0),
            log_level='ERROR',
        )
    )
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def saved(work_dir: Path, name: str) -> dict[str, Any]:
    """A checkpoint of such a run."""
    return torch.load(work_dir / name, weights_only=False)
