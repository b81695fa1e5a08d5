"""A few steps of a pre-training before it begins: does it fit, how long does a step take."""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from itpn_mm.checkpoint import load_pretrained

STEPS = 2  # that are timed, after one that is not
CROPS = 8  # of a step on a CPU; more take as much longer


class Trial(NamedTuple):
    """What a step takes: seconds to compute, to read its pictures, and gigabytes at the most."""

    compute: float
    read: float
    gigabytes: float

    @property
    def seconds(self) -> float:
        """Of a step: pictures are read beside it."""
        return max(self.compute, self.read)


def try_out(path: str) -> Trial:
    """:func:`measure`, in a process of its own, which leaves no memory taken.

    Raises:
        ValueError: See there.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(measure, path).result()


def measure(path: str) -> Trial:
    """Build the model of a config, load what it starts from, and train for some steps.

    Args:
        path: The config.

    Raises:
        ValueError: Parts or the file to start from do not fit, or the memory does not suffice.
    """
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    device = get_device()
    model = MODELS.build(cfg.model)
    if cfg.get('load_from'):
        load_pretrained(model.backbone, cfg.load_from)
    model = model.to(device).train()
    if hasattr(model, 'teacher') and hasattr(model.teacher, 'update_parameters'):
        model.teacher.update_parameters(model.backbone)
    settings = cfg.train_dataloader
    batch_size, workers = settings.batch_size, settings.num_workers
    crops = batch_size if device != 'cpu' else min(CROPS, batch_size)
    settings.update(batch_size=crops, num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader(settings, seed=0)
    start = time.perf_counter()
    batch = next(iter(loader))
    read = (time.perf_counter() - start) / crops * batch_size / max(1, workers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    amp = torch.autocast(device, enabled=cfg.optim_wrapper.type == 'AmpOptimWrapper')
    before, seconds = _resident(), []
    try:
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            with amp:
                losses = model(**model.data_preprocessor(batch, True), mode='loss')
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            if device == 'cuda':
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f'--batch-size {batch_size} does not fit into the memory of the GPU: take '
            f'{max(1, batch_size // 2)}'
        ) from error
    share = batch_size / crops
    if device == 'cuda':
        taken = torch.cuda.max_memory_allocated() / 1e9
    else:  # what one batch added grows with it
        taken = before + (_resident() - before) * share
    return Trial(min(seconds[1:]) * share, read, taken)


def _resident() -> float:
    """Gigabytes that this process has had in memory at the most."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
