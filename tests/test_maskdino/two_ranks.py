"""A process of `test_two_processes.py`: takes its half of a batch; argument: output folder."""

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from .draws import shared_rand
from .heads import double_precision, make_maps, make_target, tiny_head, total

SIZE = (64, 96)
SIZES = [SIZE, (50, 90), (40, 96), SIZE]
# Arguments of the head, and objects of four images. Noisy queries are as many on both processes
# where these have images with as many objects, and noise would not be the same.
CASES = {
    'noisy queries': (dict(denoising=dict(num_queries=6, noise_scale=0.0)), (3, 1, 2, 3)),
    'one stage': (dict(two_stage=False, denoising=None), (2, 0, 3, 4)),
    'a process without objects': (dict(box_init='mask2box', denoising=None), (2, 3, 0, 0)),
    'a process without noisy queries': (dict(denoising=dict(num_queries=6)), (2, 3, 0, 0)),
}


class Losses(nn.Module):
    """What the wrapper of distributed training calls."""

    def __init__(self, name: str) -> None:
        super().__init__()
        options, counts = CASES[name]
        torch.manual_seed(0)
        self.head = tiny_head(**options).double().train()
        self.maps = make_maps(len(counts), SIZE)
        self.targets = [make_target(count, size) for count, size in zip(counts, SIZES, strict=True)]

    def forward(self, images: slice) -> dict[str, Tensor]:
        """Losses of a part of the batch."""
        maps = [level[images] for level in self.maps]
        return self.head.losses(maps, SIZES[images], SIZE, self.targets[images])


def run(name: str, images: slice, distribute: bool = False) -> dict[str, dict[str, Tensor]]:
    """Losses, and gradients of all parameters, of the second of two steps, in double precision."""
    with double_precision():
        return _run(name, images, distribute)


def _run(name: str, images: slice, distribute: bool) -> dict[str, dict[str, Tensor]]:
    losses_of = module = Losses(name)
    if distribute:  # the second step raises where a parameter was not used in the first
        losses_of = DistributedDataParallel(module)
    for _ in range(2):
        module.zero_grad()
        losses = losses_of(images)
        total(losses).backward()
    gradients = {key: parameter.grad for key, parameter in module.head.named_parameters()}
    return dict(losses={key: loss.detach() for key, loss in losses.items()}, gradients=gradients)


def main() -> None:
    torch.rand = shared_rand()
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    half = slice(2 * rank, 2 * rank + 2)
    found = {name: run(name, half, distribute=True) for name in CASES}
    torch.save(found, Path(sys.argv[1]) / f'rank{rank}.pt')
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
