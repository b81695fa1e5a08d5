"""Peak memory of a pass on the CPU.

    python -m benchmarks.memory '{"candidate": {"model": "hivit-base", "variant": "plain"},
        "case": {"size": [800, 1280], "batch": 1, "dtype": "fp32", "device": "cpu"}}'

A process of its own for each figure: memory that an earlier model left in the allocator would be
used again and not be seen. Prints the bytes on top of what process, weights and image take.
"""

from __future__ import annotations

import json
import sys

from benchmarks.measure import peak_memory_cpu
from benchmarks.models import Candidate, build
from benchmarks.passes import Case


def main(spec: str) -> None:
    """Print the peak of one pass in bytes."""
    given = json.loads(spec)
    candidate, case = Candidate(**given['candidate']), Case(**given['case'])
    model = build(candidate, tuple(case.size)).to(case.type)
    model.train(case.train)
    img = case.images().to(case.type)
    case.run(model, img)  # libraries make their own buffers at the first call with new shapes
    for parameter in model.parameters():
        parameter.grad = None
    print(peak_memory_cpu(lambda: case.run(model, img)))


if __name__ == '__main__':
    main(*sys.argv[1:])
