"""Images per second of the shipped models alone, in eager mode and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.inference import gflop_per_image
from benchmarks.measure import peak_memory_cuda, timed
from benchmarks.models import build_model
from benchmarks.progress import Progress

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)
CHECKED = 2  # images of a batch that are compared with float32
LEAST_COSINE = 0.99  # 0.9991 for Fast-iTPN-L in bf16 with these random weights


def least_cosine(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Smallest cosine of two lists of maps (B, C, H, W), each map of an image as one vector."""
    pairs = [(a.double().flatten(1), b.double().flatten(1)) for a, b in zip(outputs, references)]
    return min(float(torch.cosine_similarity(a, b).min()) for a, b in pairs)


def classifier_parameters(model: nn.Module) -> int | None:
    """Parameters with the LayerNorm and the head of 1000 classes of a released classifier."""
    width = getattr(model, 'embed_dims', None)
    if width is None:
        return None
    return sum(p.numel() for p in model.parameters()) + 2 * width + 1000 * (width + 1)


def run_throughput(
    *,
    models: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    batch: int,
    repeats: int,
    device: str,
    dtype: str,
    compiled: bool,
) -> list[dict]:
    """Measure all models at all sizes; returns one row for each, and one more if compiled.

    Weights and images have the type `dtype`. A row holds `mode, model, size, variant, batch,
    repeats, parameters, classifier_parameters, median_s, min_s, images_per_s, gflop, peak_bytes,
    cosine`; the last is the smallest cosine of an output with that of the same weights in float32
    and eager mode.

    Raises:
        RuntimeError: Outputs are so far from those in float32 that a figure would mean nothing.
    """
    gflop = {(name, size): batch * gflop_per_image(name, size) for name in models for size in sizes}
    progress = Progress(sum(gflop.values()) * (2 + repeats) * (1 + compiled))
    rows = []
    for name in models:
        model = build_model('ours', name).to(device)
        images, references = {}, {}
        for size in sizes:
            torch.manual_seed(0)
            images[size] = torch.randn(batch, 3, *size, device=device)
            with torch.no_grad():
                references[size] = [x.cpu() for x in model(images[size][:CHECKED])]
        model.to(DTYPES[dtype])
        for size in sizes:
            img = images.pop(size).to(DTYPES[dtype])
            variants: dict[str, nn.Module] = dict(ours=model)
            if compiled:
                torch.compiler.reset()  # models share code, which is compiled a few times at most
                variants['ours, compiled'] = torch.compile(model, dynamic=False)
            for variant, call in variants.items():
                label = f'{name} {size[0]}x{size[1]} {variant}'
                measured = _measure(
                    call, img, references[size], repeats, device, label, progress, gflop[name, size]
                )
                rows.append(
                    dict(
                        mode='throughput',
                        model=name,
                        size=f'{size[0]}x{size[1]}',
                        variant=variant,
                        batch=batch,
                        repeats=repeats,
                        parameters=sum(p.numel() for p in model.parameters()),
                        classifier_parameters=classifier_parameters(model),
                        gflop=gflop[name, size],
                        images_per_s=batch / measured['median_s'],
                        **measured,
                    )
                )
    return rows


@torch.no_grad()
def _measure(
    model: nn.Module,
    img: Tensor,
    reference: Sequence[Tensor],
    repeats: int,
    device: str,
    label: str,
    progress: Progress,
    cost: float,
) -> dict:
    cosine = least_cosine([x[:CHECKED].cpu() for x in model(img)], reference)
    progress.step(f'{label}: least cosine with float32 {cosine:.6f}', cost)
    if not cosine > LEAST_COSINE:
        raise RuntimeError(
            f'{label}: the least cosine with float32 is {cosine}, below {LEAST_COSINE}; '
            'not measured'
        )
    model(img)
    progress.step(f'{label}: warm-up', cost)
    seconds = []
    for i in range(repeats):
        seconds.append(timed(partial(model, img), device))
        progress.step(f'{label}: {seconds[-1]:.3f} s ({i + 1}/{repeats})', cost)
    return dict(
        median_s=statistics.median(seconds),
        min_s=min(seconds),
        peak_bytes=peak_memory_cuda(partial(model, img)) if device == 'cuda' else None,
        cosine=cosine,
    )
