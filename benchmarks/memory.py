"""Peak memory of a forward pass on the CPU.

    python -m benchmarks.memory plain hivit-base 800x1280 1 fp32

A process of its own for each figure: memory that an earlier model left in the allocator would be
used again and not be seen. Prints the bytes on top of what process, weights and image take.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.measure import peak_memory_cpu, precision
from benchmarks.models import build_model


def main(variant: str, name: str, size: str, batch: str, dtype: str) -> None:
    """Print the peak of one forward pass in bytes."""
    height, width = map(int, size.split('x'))
    model = build_model(variant, name)
    img = torch.randn(int(batch), 3, height, width)
    with torch.no_grad(), precision('cpu', dtype):
        model(img[:1, :, :64, :64])  # libraries make their own buffers at the first call
        print(peak_memory_cpu(lambda: model(img)))


if __name__ == '__main__':
    main(*sys.argv[1:])
