"""Two processes with an image each get the gradients of one with both."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from .models import FastiTPN, accelerated, images, plain

OPTIONS = dict(
    ratio=0.4,
    schedule=dict(every=2),
    window_size=3,
    window_attention=True,
    global_layers=(1,),
    gathering=True,
    rel_pos_bias='all',
)
STEPS = 2  # a parameter without a gradient would fail the second


def build():
    torch.manual_seed(0)
    model = accelerated(plain(FastiTPN, cls_token=True), **OPTIONS).double()
    return model, images((7, 5), 2, dtype=torch.float64)


def step(model, x):
    """Gradients of a loss that is the mean over images."""
    model.zero_grad()
    sum(y.square().flatten(1).sum(1).mean() for y in model(x)).backward()
    return {k.removeprefix('module.'): p.grad for k, p in model.named_parameters()}


def run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    model, x = build()
    model = DistributedDataParallel(model)
    for _ in range(STEPS):
        gradients = step(model, x[rank : rank + 1])
    torch.save(gradients, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def test_gradients_are_those_of_one_process(tmp_path):
    mp.spawn(run, (str(tmp_path),), nprocs=2)
    expected = step(*build())
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pt')
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-8, rtol=1e-8, msg=name)
