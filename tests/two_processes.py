"""A process of `test_configs.test_two_processes_stay_equal`; arguments: config, output folder."""

import copy
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

torch.distributed.init_process_group('gloo')
cfg = Config.fromfile(sys.argv[1])
cfg.launcher = 'pytorch'
# As tools/train.py does on a CPU; mmengine would name a device.
cfg.model_wrapper_cfg = dict(
    type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
)
runner = Runner.from_cfg(cfg)
model, losses, start = runner.model.module, [], {}
train_step = runner.model.train_step


def record(data, optim_wrapper):
    if not start:  # after the hook has started the teacher
        start.update(copy.deepcopy(model.state_dict()))
    logs = train_step(data, optim_wrapper)
    losses.append(logs['loss'].item())
    return logs


runner.model.train_step = record
runner.train()
torch.save(
    dict(start=start, end=model.state_dict(), losses=losses),
    Path(sys.argv[2]) / f'rank{torch.distributed.get_rank()}.pt',
)
torch.distributed.destroy_process_group()
