"""Forward passes of the plain and the shipped model, interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import peak_memory_cuda, precision, run_fresh, timed
from benchmarks.models import build_model, shipped
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
    """Arithmetic of the matrix products of a forward pass in GFLOP; `model` is on device `meta`."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(shape, device='meta'))
    return counter.get_total_flops() / 1e9


def gflop_per_image(name: str, size: tuple[int, int]) -> float:
    """`count_gflop` of a model by name; nothing is allocated or computed."""
    with torch.device('meta'):
        model = shipped(name)
    return count_gflop(model, (1, 3, *size))


def rounds(cost: float, costs: Iterable[float], repeats: int) -> int:
    """Passes at a size: `repeats` for the most expensive one, up to 4 times as many for others."""
    return repeats * min(4, int(max(costs) / cost))


def run_inference(
    *,
    models: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batch: int,
    repeats: int,
    device: str,
    dtype: str,
    compiled: bool,
) -> list[dict]:
    """Measure all models at all sizes; returns one row for each variant, the plain one first.

    A row holds `mode, model, size, variant, batch, repeats, median_s, min_s, images_per_s, gflop,
    peak_bytes, relative_error, speedup, memory_ratio`; the last two compare with the plain variant
    (above 1 is better for both).
    """
    gflop = {name: {size: batch * gflop_per_image(name, size) for size in sizes} for name in models}
    plan = {
        name: {size: rounds(cost, costs.values(), repeats) for size, cost in costs.items()}
        for name, costs in gflop.items()
    }
    peaks = 0 if device == 'cuda' else 2
    progress = Progress(
        sum(
            cost * ((2 + compiled) * (1 + plan[name][size]) + peaks)
            for name, costs in gflop.items()
            for size, cost in costs.items()
        )
    )
    rows = []
    for name in models:
        variants: dict[str, nn.Module] = {
            variant: build_model(variant, name).to(device) for variant in ('plain', 'ours')
        }
        if compiled:
            torch.compiler.reset()  # models share code, which is compiled a few times at most
            variants['ours, compiled'] = torch.compile(variants['ours'])
        for size, times in plan[name].items():
            common = dict(mode='inference', model=name, size=f'{size[0]}x{size[1]}', batch=batch)
            common.update(repeats=times, gflop=gflop[name][size])
            torch.manual_seed(0)
            img = torch.randn(batch, 3, *size).to(device)
            rows += [
                common | row for row in _run_size(variants, img, common, device, dtype, progress)
            ]
    return rows


def _run_size(
    variants: dict[str, nn.Module],
    img: Tensor,
    common: dict,
    device: str,
    dtype: str,
    progress: Progress,
) -> list[dict]:
    label, cost, repeats = f'{common["model"]} {common["size"]}', common['gflop'], common['repeats']
    errors, peaks = {}, {}
    with torch.no_grad(), precision(device, dtype):
        reference = variants['plain'](img)
        progress.step(f'{label} plain: warm-up', cost)
        for name, model in variants.items():
            if name != 'plain':
                errors[name] = relative_error(model(img), reference)
                progress.step(f'{label} {name}: largest relative error {errors[name]:.1e}', cost)
        del reference
        wrong = {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]}
        if wrong:
            raise RuntimeError(
                f'outputs of {label} differ by {wrong}, more than {TOLERANCE[dtype]}; not measured'
            )
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for i in range(repeats):
            for name, model in variants.items():
                seconds[name].append(timed(partial(model, img), device))
                progress.step(
                    f'{label} {name}: {seconds[name][-1]:.3f} s ({i + 1}/{repeats})', cost
                )
        for name, model in variants.items():
            if device == 'cuda':
                peaks[name] = peak_memory_cuda(partial(model, img))
            elif name in ('plain', 'ours'):
                settings = (common['model'], common['size'], str(common['batch']), dtype)
                peaks[name] = int(run_fresh([name, *settings]).split()[-1])
                progress.step(f'{label} {name}: peak {peaks[name] / 2**20:.0f} MiB', cost)
    base = statistics.median(seconds['plain'])
    return [
        dict(
            variant=name,
            median_s=statistics.median(times),
            min_s=min(times),
            images_per_s=len(img) / statistics.median(times),
            peak_bytes=peaks.get(name),
            relative_error=errors.get(name),
            speedup=base / statistics.median(times),
            memory_ratio=peaks['plain'] / peaks[name] if name in peaks else None,
        )
        for name, times in seconds.items()
    ]
