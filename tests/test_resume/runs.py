"""Runs of shrunk shipped configs, whole or interrupted, and all that is left of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from itpn_mm.engine.wrappers import unwrap

from ..tiny_configs import ROOT, parse, plain_text, shrink

# What a run is called here -> its config.
CONFIGS = {
    'pixel': 'pretraining/itpn-pixel_hivit-tiny-p16_8xb512-amp-coslr-300e_in1k',
    'clip': 'pretraining/itpn-clip-b_hivit-tiny-p16_8xb256-amp-coslr-300e_in1k',
    'classifier': 'classification/'
    'fastitpn-tiny-p16_itpn-clip-l-1600e-pre_16xb64-amp-coslr-100e_in1k',
    'mask-rcnn': 'detection/mask-rcnn_hivit-demo-itpn-pixel_tpn_1xb4-24e_nuclei',
    'upernet': 'segmentation/upernet_hivit-demo-itpn-pixel_tpn_1xb4-400i_nuclei',
}
EPOCH = 6  # iterations


class Stopped(Exception):
    """A run was interrupted."""


@HOOKS.register_module(force=True)
class Record(Hook):
    """Notes the losses of each iteration; interrupts the run after the iteration `stop`."""

    priority = 'LOWEST'  # after the checkpoint hook

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def before_run(self, runner: Runner) -> None:
        runner.losses = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        logs = {name: torch.as_tensor(value).detach().clone() for name, value in outputs.items()}
        logs['lr'] = torch.tensor(runner.optim_wrapper.get_lr()['lr'])
        runner.losses[runner.iter] = logs
        if runner.iter + 1 == self.stop:
            raise Stopped


def config(name: str, folder: Path) -> Config:
    """A run of two epochs, or as many iterations, that saves at its very end only."""
    path = ROOT / 'configs' / f'{CONFIGS[name]}.py'
    folder.mkdir(parents=True, exist_ok=True)
    cfg = shrink(Config(parse(path).to_dict()), path.stem, folder)
    for part in ('backbone', 'neck'):
        if cfg.model.get(part):
            cfg.model[part].init_cfg = None
    if 'drop_path_rate' in cfg.model.backbone:
        cfg.model.backbone.drop_path_rate = 0.3
    loader = cfg.train_dataloader
    images = {'classifier': 4}.get(name, 2)
    loader.update(batch_size=2)
    loader.dataset = dict(
        type='mmengine.RepeatDataset', times=2 * EPOCH // images, dataset=loader.dataset
    )
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2 * EPOCH, val_interval=1000)
    else:
        cfg.train_cfg.max_epochs = 2
    for kind in ('val', 'test'):
        cfg.update({f'{kind}_{part}': None for part in ('cfg', 'dataloader', 'evaluator')})
    cfg.default_hooks.checkpoint.update(interval=1000, max_keep_ckpts=-1, save_best=None)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmengine.Record')]
    return cfg


def save_every(cfg: Config, interval: int, by_epoch: bool = False) -> Config:
    cfg.default_hooks.checkpoint.update(interval=interval, by_epoch=by_epoch)
    return cfg


def run(cfg: Config, work_dir: Path, stop: int | None = None, resume: bool = False) -> Runner:
    """Train in `work_dir`; `stop` is the number of iterations after which it is interrupted."""
    cfg = Config(cfg.to_dict())
    cfg.custom_hooks[-1].stop = stop
    cfg.work_dir, cfg.resume = str(work_dir), resume
    cfg.experiment_name = f'{work_dir.parent.name}_{work_dir.name}_{stop}_{resume}'
    with plain_text():
        runner = Runner.from_cfg(cfg)
        try:
            runner.train()
            assert stop is None
        except Stopped:
            pass
    return runner


def remains(runner: Runner) -> dict[str, Any]:
    """All that a later iteration, or a user, could read of a run."""
    model = unwrap(runner.model)
    hooks = [hook for hook in runner.hooks if hasattr(hook, 'ema_model')]
    return dict(
        model=dict(model.state_dict()),
        named=dict((*model.named_parameters(), *model.named_buffers())),  # those not saved too
        averages=[dict(hook.ema_model.state_dict()) for hook in hooks],
        optimizer=runner.optim_wrapper.state_dict(),
        schedulers=[scheduler.state_dict() for scheduler in runner.param_schedulers or []],
        place=(runner.epoch, runner.iter),
        scalars={
            name: runner.message_hub.get_scalar(name).data
            for name in runner.message_hub.log_scalars
            if 'time' not in name and 'memory' not in name
        },
    )


def differences(a: Any, b: Any, path: str = '') -> list[str]:
    """Where two values are not equal to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f'{path}.{key}')]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f'{path}.{i}')]
    if isinstance(a, (torch.Tensor, np.ndarray)) and isinstance(b, type(a)):
        equal = torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        return [] if equal else [path]
    return [] if a == b else [f'{path} ({a!r} and {b!r})'[:300]]
