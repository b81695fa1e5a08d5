"""Time and peak memory of one call, and facts about the machine."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, its kernels on the device included."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _status_bytes(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no field {field}')


def _trim() -> None:
    """Give freed heap pages back, so that they do not hide what the measured call takes."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def peak_memory_cpu(call: Callable[[], object]) -> int:
    """Bytes by which the resident set grows at most during a call; for a fresh process on Linux.

    The high-water mark is reset before the call where the kernel allows it. Elsewhere the mark of
    the whole process counts, which is the same as long as nothing before the call took more.
    """
    _trim()
    try:
        Path('/proc/self/clear_refs').write_text('5')
        reset = True
    except OSError:
        reset = False
    before = _status_bytes('VmRSS')
    call()
    if reset:
        return _status_bytes('VmHWM') - before
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def peak_memory_cuda(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at most on the current GPU, on top of what was there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def gemm_type(dtype: str) -> str:
    """Type of the matrix products of a precision: `fp32` or `bf16`."""
    return 'fp32' if dtype == 'fp32' else 'bf16'


def gemm_gflops(device: str, dtype: str, size: int = 2048, repeats: int = 10) -> float:
    """Best measured rate of a square matrix product of type `fp32` or `bf16`, in GFLOP/s."""
    kind = torch.bfloat16 if dtype == 'bf16' else torch.float32
    if device == 'cuda':
        size, repeats = 4 * size, 5 * repeats  # to fill it, and for its clock to settle
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = min(timed(partial(torch.matmul, a, b), device) for _ in range(repeats))
    return 2 * size**3 / best / 1e9


def cpu_name() -> str:
    """Model name of the processor."""
    info = Path('/proc/cpuinfo')
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def gemm_rates(device: str, dtypes: Iterable[str], best: Mapping[str, float] | None = None) -> dict:
    """Rate of a large matrix product in GFLOP/s, for each type that the precisions need.

    The better one of now and of `best`: a rate that other load held down would flatter our share.
    """
    kinds = dict.fromkeys(gemm_type(dtype) for dtype in dtypes)
    return {
        kind: max(round(gemm_gflops(device, kind)), (best or {}).get(kind, 0)) for kind in kinds
    }


def machine_facts(device: str) -> dict:
    """What a reader needs to judge the figures."""
    facts = dict(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        threads=torch.get_num_threads(),
        load_before=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    if device == 'cuda':
        facts['gpu'] = torch.cuda.get_device_name()
    return facts


def run_fresh(arguments: list[str], module: str = 'benchmarks.memory') -> str:
    """Run a module of this project in a new process and return what it prints."""
    command = [sys.executable, '-m', module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'`{" ".join(command)}` failed:\n{done.stderr.strip()}')
    return done.stdout
