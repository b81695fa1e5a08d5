"""A process of the tests here: `python -m tests.test_resume.worker CASE FOLDER ...`."""

import os
import signal
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed

from .runs import differences, remains, run
from .small import small

# Of two processes -> what is different from the run in `small.py`; an epoch has 3 iterations.
CASES = {
    'epochs': {'default_hooks.checkpoint.interval': 2},
    'iterations': {
        'default_hooks.checkpoint.interval': 2,
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=6),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'train_dataloader.num_workers': 2,
    },
    'seeds of their own': {
        'default_hooks.checkpoint.interval': 2,
        'randomness.diff_rank_seed': True,
    },
    'accumulation': {
        'default_hooks.checkpoint.interval': 3,
        'optim_wrapper.accumulative_counts': 2,
    },
}


@HOOKS.register_module(force=True)
class Kill(Hook):
    """Ends this process after an iteration, with no chance to do anything else."""

    priority = 'LOWEST'

    def __init__(self, after: int) -> None:
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def kill(folder: Path, after: str) -> None:
    """A run that does not reach its end."""
    cfg = small(train_dataloader__num_workers=2)
    cfg.custom_hooks.insert(0, dict(type='Kill', after=int(after)))
    run(cfg, folder)


def ranks(folder: Path) -> None:
    """Interrupted and whole runs of two processes; what is different, in a file for each."""
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    cfg = small(
        model__norm='LayerNorm',  # statistics of a batch norm that is not synchronised are lost
        launcher='pytorch',
        model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None),
    )
    found, samples = {}, {}
    for name, changes in CASES.items():
        case = Config(cfg.to_dict())
        case.merge_from_dict(changes)
        whole = run(case, folder / name / 'whole')
        first = run(case, folder / name / 'cut', stop=3)
        distributed.barrier()
        resumed = run(case, folder / name / 'cut', resume=True)
        losses = first.losses | resumed.losses
        both = remains(whole), remains(resumed)
        if rank:  # logs of the first process are those that are saved
            both[0]['scalars'] = both[1]['scalars'] = None
        found[name] = differences(losses, whole.losses) + differences(*both)
        weights = [list(part['named'].values()) for part in both]
        found[f'{name}, largest'] = max(float((a - b).abs().max()) for a, b in zip(*weights))
        samples[name] = [int(logs['samples']) for logs in losses.values()]
        samples[f'{name}, losses'] = [float(logs['loss']) for logs in losses.values()]
    torch.save(dict(found=found, samples=samples), folder / f'rank{rank}.pt')
    distributed.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    case, folder, *rest = sys.argv[1:]
    globals()[case](Path(folder), *rest)


if __name__ == '__main__':
    main()
