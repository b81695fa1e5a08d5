"""Runs the chains of the study side by side, each in a process; complete rows are skipped."""

import os
import sys
import time
from pathlib import Path

from demo_run.parallel import Progress, run_parallel

from .plan import Chain
from .results import read, rows_of

# The same instructions on every x86 processor with AVX2: wider vectors add up in another order.
PINNED = dict(
    ATEN_CPU_CAPABILITY='avx2',
    MKL_CBWR='AVX2',
    MKL_NUM_THREADS='1',
    ONEDNN_MAX_CPU_ISA='AVX2',
    OMP_NUM_THREADS='1',
)
# Seconds of a core, for the time that is left.
COSTS = {'pretrain': 130, 'classes': 40, 'instances': 130, 'trees': 110}


def missing(chain: Chain, tasks: tuple[str, ...], work: Path) -> list[str]:
    """Rows of a chain that are neither committed nor in the work folder."""
    done = read()
    return [
        name
        for name in rows_of(chain, tasks)
        if name not in done and not (work / 'rows' / f'{name}.json').exists()
    ]


def conduct(
    chains: list[Chain], tasks: tuple[str, ...], work: Path, jobs: int, minutes: float | None
) -> None:
    """Run what is missing of the chains, `jobs` at a time.

    Args:
        chains: In their order.
        tasks: Those to fine-tune.
        work: Folder of rows, logs and checkpoints.
        jobs: Processes at a time; each computes with one thread.
        minutes: No chain is begun later than that; `None` for no end.

    Raises:
        StepError: A chain failed.
    """
    todo = {chain: missing(chain, tasks, work) for chain in chains}
    todo = {chain: rows for chain, rows in todo.items() if rows}
    costs = {row: COSTS[row.split('/')[-1].split('-')[0]] for rows in todo.values() for row in rows}
    print(f'{len(costs)} rows of {len(todo)} chains are missing', flush=True)
    os.environ.update(PINNED)
    end = None if minutes is None else time.time() + 60 * minutes
    script = str(Path(__file__).parents[2] / 'tools' / 'benchmark_transfer.py')
    commands = {
        chain.name: [
            *(sys.executable, script, '--chain', chain.name, '--tasks', *tasks),
            *('--work-dir', str(work)),
            *(() if end is None else ('--until', str(end))),
        ]
        for chain in todo
    }
    run_parallel(commands, jobs, work / 'logs', Progress(costs))
