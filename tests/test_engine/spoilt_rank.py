"""One of two processes, the second of which meets NaN; argument: output folder."""

import sys
from pathlib import Path

import torch
from mmengine.dist import get_rank
from mmengine.runner import Runner

from ..losses import digest
from ..test_processes.runs import training
from .spoil import Spoil, nan_in

LAYER = 'backbone.stages.2.0.mlp.fc2'


def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo')
    cfg = training(out / 'run', steps=4)
    cfg.default_hooks.update(
        seed=dict(type='itpn_mm.SeedHook'),
        nonfinite=dict(type='itpn_mm.NonFiniteHook', max_skips=1),
    )
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Spoil(LAYER, [1, 2] if get_rank() else [], nan_in))
    try:
        runner.train()
    except FloatingPointError as error:
        hook = next(h for h in runner.hooks if type(h).__name__ == 'NonFiniteHook')
        weights = digest(runner.model.module.state_dict())
        result = dict(message=str(error), skipped=hook.skipped, weights=weights)
        torch.save(result, out / f'rank{get_rank()}.pt')
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(Path(sys.argv[1]))
