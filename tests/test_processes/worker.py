"""One of two processes; arguments: the name of a function below, output folder."""

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from .launch import ROOT
from .runs import found, train, training

FSDP_RUN = dict(runner_type='FlexibleRunner', strategy=dict(type='itpn_mm.FSDPStrategy'))


def ddp(out: Path) -> dict:
    """Two processes of 4 images; with checkpointing; 50 steps; SyncBN."""
    results = dict(plain=found(train(training(out / 'plain'))))
    results['with_cp'] = found(train(training(out / 'with_cp', model__backbone__with_cp=True)))
    results['long'] = found(train(training(out / 'long', steps=50)))
    norm = torch.nn.SyncBatchNorm(4)
    try:
        norm(torch.randn(2, 4, 3, 3))
    except ValueError as error:
        results['sync_bn'] = str(error)
    return results


def whole(runner) -> dict:
    """Losses, and all parameters and buffers, gathered."""
    with FSDP.summon_full_params(runner.model, writeback=False):
        tensors = [*runner.model.named_parameters(), *runner.model.named_buffers()]
        state = {name: tensor.detach().clone() for name, tensor in tensors}
    return dict(losses=torch.stack(runner.losses), state=state)


def fsdp(out: Path) -> dict:
    """Sharded runs; each also leaves a checkpoint."""
    results = {}
    full = train(training(out / 'full', **FSDP_RUN))
    results['full'] = dict(
        whole(full),
        groups=[dict(group, params=None) for group in full.optim_wrapper.optimizer.param_groups],
        held=sum(parameter.numel() for parameter in full.model.parameters()),
    )
    local = training(out / 'local', **FSDP_RUN)
    local.strategy.state_dict_cfg = 'local'
    results['local'] = whole(train(local))
    results['with_cp'] = whole(
        train(training(out / 'with_cp', model__backbone__with_cp=True, **FSDP_RUN))
    )
    for kind in ('full', 'local'):
        cfg = training(out / kind, steps=4, resume=True, **FSDP_RUN)
        cfg.strategy.state_dict_cfg = kind
        results[f'{kind}, resumed'] = whole(train(cfg))
    results['four steps'] = whole(train(training(out / 'four', steps=4, **FSDP_RUN)))
    return results


def zero(out: Path) -> dict:
    """DeepSpeed by the shipped settings, in float32; mmengine allows one such run in a process."""
    cfg = training(out / 'run')
    cfg.merge_from_dict(Config.fromfile(ROOT / 'configs/_base_/strategies/zero.py').to_dict())
    cfg.strategy.update(
        gradient_clipping=cfg.optim_wrapper.clip_grad.max_norm,
        train_micro_batch_size_per_gpu=cfg.train_dataloader.batch_size,
    )
    cfg.strategy.config.torch_autocast.enabled = False
    cfg.optim_wrapper = dict(
        type='DeepSpeedOptimWrapper',
        **{k: cfg.optim_wrapper[k] for k in ('optimizer', 'constructor', 'paramwise_cfg')},
    )
    runner = train(cfg)
    return dict(losses=torch.stack(runner.losses), state=runner.model.module.state_dict())


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    out = Path(sys.argv[2])
    results = globals()[sys.argv[1]](out)
    torch.save(results, out / f'rank{distributed.get_rank()}.pt')
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
