"""Forward passes of the plain and the shipped model, interleaved in one run."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import peak_memory_cuda, precision, run_fresh, timed
from benchmarks.models import build_model
from benchmarks.progress import Progress

# largest accepted difference of the outputs, relative to the largest value of a map
TOLERANCE = dict(fp32=1e-4, bf16=5e-2)


def relative_error(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Largest difference of two lists of maps, relative to the largest value of each reference."""
    if len(outputs) != len(references):
        raise ValueError(f'`outputs` must hold {len(references)} maps, but got {len(outputs)}')
    errors = [
        (out.float() - ref.float()).abs().max() / ref.float().abs().max()
        for out, ref in zip(outputs, references)
    ]
    return max(float(error) for error in errors)


def count_gflop(model: nn.Module, shape: Sequence[int]) -> float:
    """Arithmetic of the matrix products of a forward pass, in GFLOP; nothing is computed."""
    model = copy.deepcopy(model).to('meta')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(shape, device='meta'))
    return counter.get_total_flops() / 1e9


def work(size: tuple[int, int]) -> float:
    """Rough cost of a forward pass: a linear part plus the attention matrix."""
    patches = size[0] * size[1] / 256
    return patches + patches**2 / 2000


def rounds(size: tuple[int, int], sizes: Sequence[tuple[int, int]], repeats: int) -> int:
    """Passes at a size: `repeats` for the most expensive one, up to 4 times as many for others."""
    most = max(work(other) for other in sizes)
    return repeats * min(4, int(most / work(size)))


def run_inference(
    *,
    arch: str,
    sizes: Sequence[tuple[int, int]],
    batch: int,
    repeats: int,
    device: str,
    dtype: str,
    compiled: bool,
) -> list[dict]:
    """Measure all sizes; returns one row for each size and variant, the plain model first.

    A row holds `mode, size, variant, batch, repeats, median_s, min_s, images_per_s, gflop,
    peak_bytes, relative_error, speedup, memory_ratio`; the last two compare with the plain model
    (above 1 is better for both).
    """
    models: dict[str, nn.Module] = {
        name: build_model(name, arch).to(device) for name in ('plain', 'ours')
    }
    if compiled:
        models['ours, compiled'] = torch.compile(models['ours'])
    peaks = 0 if device == 'cuda' else 2
    plan = {size: rounds(size, sizes, repeats) for size in sizes}
    total = sum(work(size) * (len(models) * (1 + times) + peaks) for size, times in plan.items())
    progress = Progress(total)
    rows = []
    for size, times in plan.items():
        rows += _run_size(models, arch, size, batch, times, device, dtype, progress)
    return rows


def _run_size(
    models: dict[str, nn.Module],
    arch: str,
    size: tuple[int, int],
    batch: int,
    repeats: int,
    device: str,
    dtype: str,
    progress: Progress,
) -> list[dict]:
    label, cost = f'{size[0]}x{size[1]}', work(size)
    torch.manual_seed(0)
    img = torch.randn(batch, 3, *size).to(device)
    errors, peaks = {}, {}
    with torch.no_grad(), precision(device, dtype):
        reference = models['plain'](img)
        progress.step(f'{label} plain: warm-up', cost)
        for name, model in models.items():
            if name != 'plain':
                errors[name] = relative_error(model(img), reference)
                progress.step(f'{label} {name}: largest relative error {errors[name]:.1e}', cost)
        del reference
        wrong = {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]}
        if wrong:
            raise RuntimeError(
                f'outputs at {label} differ by {wrong}, more than {TOLERANCE[dtype]}; not measured'
            )
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for i in range(repeats):
            for name, model in models.items():
                seconds[name].append(timed(partial(model, img), device))
                progress.step(
                    f'{label} {name}: {seconds[name][-1]:.3f} s ({i + 1}/{repeats})', cost
                )
        for name, model in models.items():
            if device == 'cuda':
                peaks[name] = peak_memory_cuda(partial(model, img))
            elif name in ('plain', 'ours'):
                peaks[name] = int(run_fresh([name, arch, label, str(batch), dtype]))
                progress.step(f'{label} {name}: peak {peaks[name] / 2**20:.0f} MiB', cost)
    base = statistics.median(seconds['plain'])
    gflop = count_gflop(models['plain'], img.shape)
    return [
        dict(
            mode='inference',
            size=label,
            variant=name,
            batch=batch,
            repeats=repeats,
            median_s=statistics.median(times),
            min_s=min(times),
            images_per_s=batch / statistics.median(times),
            gflop=gflop,
            peak_bytes=peaks.get(name),
            relative_error=errors.get(name),
            speedup=base / statistics.median(times),
            memory_ratio=peaks['plain'] / peaks[name] if name in peaks else None,
        )
        for name, times in seconds.items()
    ]
