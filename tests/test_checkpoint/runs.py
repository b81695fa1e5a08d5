"""A run of one parameter vector, whose checkpoints are about a mebibyte."""

from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

SIZE = 1 << 20  # bytes of the weights


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(inputs=torch.tensor([float(index)]))


class Vector(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE // 4))

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=(self.weight.mean() - inputs).square().mean())


def make_runner(work_dir: Path, epochs: int, resume: bool = False, **checkpoint: Any) -> Runner:
    """A run of 3 iterations an epoch; `checkpoint` goes to the checkpoint hook."""
    return Runner(
        model=Vector(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Numbers(),
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02)),
        default_hooks=dict(
            checkpoint=dict(type='itpn_mm.AtomicCheckpointHook', **checkpoint),
            preflight=dict(type='itpn_mm.PreflightHook'),
            seed=dict(type='itpn_mm.SeedHook'),
        ),
        resume=resume,
        log_level='WARNING',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}_{epochs}_{resume}',
    )
