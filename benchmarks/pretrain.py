"""One optimiser step of the shipped pre-training: forward, backward, AdamW and the EMA teacher."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from itertools import product

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from benchmarks.measure import ROOT, peak_memory_cuda, timed
from benchmarks.models import TINY_ARCH
from benchmarks.progress import Progress

CONFIG = 'configs/pretraining/itpn-pixel_hivit-{}-p16_8xb512-amp-coslr-300e_in1k.py'


def pretraining_config(arch: str, size: tuple[int, int], dtype: str) -> Config:
    """The shipped config of `arch` for images of `size` (square), fp32 without mixed precision."""
    cfg = Config.fromfile(ROOT / CONFIG.format('base' if arch == 'test' else arch))
    cfg.model.backbone.img_size = cfg.model.decoder.img_size = size[0]
    if arch == 'test':
        width = TINY_ARCH['embed_dims']
        channels = (width // 4, width // 2, width)
        cfg.model.backbone.arch = copy.deepcopy(TINY_ARCH)
        cfg.model.neck.in_channels = cfg.model.mfm_head.stage_channels = channels
    cfg.optim_wrapper.pop('loss_scale')
    if dtype == 'amp':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
    else:
        cfg.optim_wrapper.type = 'OptimWrapper'
    return cfg


class Step:
    """A model with its optimiser and a batch of random pictures; each call is one step."""

    def __init__(self, cfg: Config, size: tuple[int, int], batch: int, device: str) -> None:
        init_default_scope(cfg.default_scope)
        self.model: nn.Module = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(device).train()
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.data = dict(inputs=torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8))
        self.data['data_samples'] = None
        self.follow()

    def follow(self) -> None:
        """Move the teacher, as `EMATeacherHook` does after a step."""
        self.model.teacher.update_parameters(self.model.backbone)

    def __call__(self) -> None:
        losses = self.model.train_step(self.data, self.optimizer)
        self.follow()
        if not torch.isfinite(losses['loss']):
            raise RuntimeError(f'the loss is {losses["loss"]}; not measured')


def run_pretrain(
    models: Sequence[str],
    *,
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    dtypes: Sequence[str],
    repeats: int,
    device: str,
) -> list[dict]:
    """Measure `hivit-*` models in all cases; returns a row each, with nothing to compare."""
    cases = list(product(models, dtypes, batches, sizes))
    costs = [batch * h * w for _, _, batch, (h, w) in cases]
    progress = Progress(sum(costs) * (repeats + 1))
    rows = []
    for (name, dtype, batch, size), cost in zip(cases, costs):
        label = f'{name} {size[0]}x{size[1]}, {batch} image(s), {dtype}, step'
        torch.manual_seed(0)
        cfg = pretraining_config(name.removeprefix('hivit-'), size, dtype)
        step = Step(cfg, size, batch, device)
        step()
        progress.step(f'{label}: warm-up', cost)
        seconds = []
        for i in range(repeats):
            seconds.append(timed(step, device))
            progress.step(f'{label}: {seconds[-1]:.4g} s ({i + 1}/{repeats})', cost)
        median = statistics.median(seconds)
        rows.append(
            dict(
                mode='pretrain',
                model=name,
                variant='dense',
                compiled=False,
                pyramid=True,
                size=f'{size[0]}x{size[1]}',
                batch=batch,
                dtype=dtype,
                repeats=repeats,
                median_s=median,
                min_s=min(seconds),
                max_s=max(seconds),
                images_per_s=batch / median,
                peak_bytes=peak_memory_cuda(step) if device == 'cuda' else None,
            )
        )
    return rows
