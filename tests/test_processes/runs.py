"""Trainings of a tiny iTPN with EMA teacher, the same whatever the number of processes.

Images and masks are functions of the position in the run, so 2 processes of 4 images see what one
of 8 sees.
"""

import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS, RUNNERS
from torch import Tensor, nn
from torch.utils.data import Dataset

from itpn_mm.pretraining import PatchMask

from ..test_pretraining.models import itpn_cfg

BATCH = 8  # images of all processes together
SIDE = 64


@DATASETS.register_module(force=True)
class NumberedImages(Dataset):
    """`length` images; each is a function of its number."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.metainfo: dict = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, SIDE, SIDE, generator=generator))


@MODELS.register_module(force=True)
class NumberedMasks:
    """Masks that are functions of the number of the image, images being in order."""

    def __init__(self) -> None:
        self.step = 0

    def __call__(self, batch_size: int, num_patches: int, device: torch.device) -> PatchMask:
        rank, world = get_dist_info()
        first = self.step * batch_size * world + rank
        self.step += 1
        noise = [
            torch.rand(num_patches, generator=torch.Generator().manual_seed(first + world * i))
            for i in range(batch_size)
        ]
        return PatchMask.from_noise(torch.stack(noise).to(device), num_patches // 4)


@HOOKS.register_module(force=True)
class RecordSteps(Hook):
    """Notes all losses, and the gradients of the first step of the optimizer."""

    def before_train(self, runner) -> None:
        runner.losses, runner.gradients = [], {}
        runner.model.apply(skip_steps(runner.iter))
        step = runner.optim_wrapper.step

        def recorded_step(**kwargs: Any) -> None:
            if not runner.gradients:
                runner.gradients = {
                    name.removeprefix('module.'): parameter.grad.clone()
                    for name, parameter in runner.model.named_parameters()
                    if parameter.grad is not None
                }
            step(**kwargs)

        runner.optim_wrapper.step = recorded_step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.losses.append(outputs['loss'].detach().clone())


def skip_steps(steps: int) -> Any:
    """A function that lets the masks of a model go on after `steps`, as a resumed run does."""

    def skip(module: nn.Module) -> None:
        masking = module._modules.get('masking', vars(module).get('masking'))
        if isinstance(masking, NumberedMasks):
            masking.step = steps

    return skip


def training(work_dir: Path, steps: int = 2, accumulate: int = 1, **changes: Any) -> Config:
    """A run of `steps` steps of the optimizer; `changes` by dotted name with two underscores."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=itpn_cfg(masking__type='NumberedMasks'),
            train_dataloader=dict(
                batch_size=BATCH // world // accumulate,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                collate_fn=dict(type='default_collate'),
                dataset=dict(type='NumberedImages', length=BATCH * steps),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=steps * accumulate),
            optim_wrapper=dict(
                type='OptimWrapper',
                # `eps` so that rounding of small gradients is not blown up
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05, eps=1e-3),
                constructor='itpn_mm.LayerDecayOptimWrapperConstructor',
                paramwise_cfg=dict(layer_decay_rate=0.9),
                clip_grad=dict(max_norm=0.5),  # less than it is, so that clipping matters
                accumulative_counts=accumulate,
            ),
            custom_hooks=[dict(type='itpn_mm.EMATeacherHook'), dict(type='RecordSteps')],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=steps, by_epoch=False),
                logger=dict(type='LoggerHook', interval=1),
            ),
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
            launcher='pytorch' if world > 1 else 'none',
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
            ),
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            randomness=dict(seed=0),
            log_level='ERROR',
        )
    )
    cfg.model.masking.pop('ratio')
    cfg.model.data_preprocessor = dict(type='BaseDataPreprocessor')
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    return cfg


def train(cfg: Config) -> Any:
    """Run `cfg` in the runner that it names; returns the runner."""
    cfg.setdefault('runner_type', 'Runner')
    runner = RUNNERS.build(cfg)
    runner.train()
    return runner


def found(runner: Any) -> dict[str, Any]:
    """What a test compares: losses, first gradients and last state."""
    model = getattr(runner.model, 'module', runner.model)
    return dict(
        losses=torch.stack(runner.losses), gradients=runner.gradients, state=model.state_dict()
    )


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of two sets of tensors, over the largest value of each tensor."""
    assert found.keys() == expected.keys()
    return max(
        float((found[k] - v).abs().max() / v.abs().max().clamp(min=1e-8)) if v.numel() else 0.0
        for k, v in expected.items()
    )
