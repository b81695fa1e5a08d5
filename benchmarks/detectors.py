"""Whole detectors of mmdet: the same stock heads on our backbones with pyramid, and on Swin-B."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from benchmarks.measure import peak_memory_cuda, timed
from benchmarks.models import TINY_ARCH, arguments_of
from benchmarks.progress import Progress
from itpn_mm.recipes import swap_in

DETECTORS = {
    'mask-rcnn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
}
PEER = 'swin-base'
SWIN_CHANNELS = (128, 256, 512, 1024)
Size = tuple[int, int]


@dataclass(frozen=True)
class Detector:
    """A detector by its heads, its backbone and the setting of acceleration."""

    heads: str
    model: str
    variant: str

    @property
    def label(self) -> str:
        """One phrase."""
        return f'{self.heads} {self.model}' + ('' if self.model == PEER else f' {self.variant}')


def list_detectors(
    heads: Sequence[str], models: Sequence[str], settings: Sequence[str]
) -> list[Detector]:
    """All that is to be compared, in the order of the table."""
    return [
        Detector(head, model, variant)
        for head in heads
        for model, variant in [(PEER, 'peer'), *product(models, settings)]
    ]


def detector_config(detector: Detector) -> Config:
    """The stock config with another backbone and neck, nothing to download."""
    cfg = Config.fromstring(f"_base_ = '{DETECTORS[detector.heads]}'", '.py')
    if detector.model == PEER:
        inputs = len(cfg.model.neck.in_channels)
        cfg.model.backbone = dict(
            type='SwinTransformer',
            embed_dims=SWIN_CHANNELS[0],
            depths=(2, 2, 18, 2),
            num_heads=(4, 8, 16, 32),
            window_size=7,
            out_indices=tuple(range(4))[-inputs:],
        )
        cfg.model.neck.in_channels = list(SWIN_CHANNELS[-inputs:])
        return cfg
    trunk, arch = detector.model, {}
    if trunk.endswith('-test'):
        trunk, arch = trunk.replace('-test', '-tiny'), dict(arch=copy.deepcopy(TINY_ARCH))
    cfg.merge_from_dict(dict(model=swap_in(cfg.model, trunk, **arch)))
    if detector.variant != 'dense':
        cfg.model.backbone = dict(
            type='itpn_mm.TokenMigration',
            backbone=cfg.model.backbone,
            **arguments_of(detector.variant),
        )
    return cfg


def build_detector(detector: Detector) -> nn.Module:
    """The detector with random weights, in evaluation mode.

    Random class scores would leave a two-stage detector without a box above its threshold, and its
    mask head without work. So each of its proposals is an object, of which 100 survive.
    """
    cfg = detector_config(detector)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    if hasattr(model, 'roi_head'):
        with torch.no_grad():
            model.roi_head.bbox_head.fc_cls.bias[0] += 20.0
    model.eval()  # gives nothing back in Swin
    return model


class Parts:
    """Seconds of the backbone and of the neck in the passes of a detector, by hooks."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.device = device
        self.started = 0.0
        self.seconds: dict[str, list[float]] = dict(backbone=[], neck=[])
        for name, seconds in self.seconds.items():
            part = getattr(model, name)
            part.register_forward_pre_hook(self._start)
            part.register_forward_hook(
                lambda *_, seconds=seconds: seconds.append(self._now() - self.started)
            )

    def _now(self) -> float:
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def _start(self, *_) -> None:
        self.started = self._now()


class Pass:
    """A detector and a batch of images; each call finds objects in them."""

    def __init__(self, detector: Detector, size: Size, batch: int, dtype: str, device: str) -> None:
        self.detector, self.device, self.dtype = detector, device, dtype
        self.model = build_detector(detector).to(device)
        self.parts = Parts(self.model, device)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 3, *size, generator=generator).to(device)
        shapes = dict(ori_shape=size, img_shape=size, pad_shape=size, batch_input_shape=size)
        self.sample = DetDataSample(metainfo=dict(scale_factor=(1.0, 1.0), **shapes))
        self.seconds: list[float] = []
        self.found = 0

    def precision(self) -> AbstractContextManager:
        """Context of a pass: half precision on a GPU, bfloat16 on a CPU, which has no other."""
        if self.dtype == 'fp32':
            return nullcontext()
        kind = torch.float16 if self.device == 'cuda' else torch.bfloat16
        return torch.autocast(self.device, kind)

    @torch.no_grad()
    def __call__(self) -> None:
        samples = [copy.deepcopy(self.sample) for _ in self.images]
        with self.precision():
            results = self.model.predict(self.images, samples)
        found: Tensor = results[0].pred_instances.bboxes
        if not found.isfinite().all() or not len(found):
            raise RuntimeError(f'{self.detector.label} finds nothing, or boxes that are not finite')
        self.found = len(found)

    def row(self) -> dict:
        """What was measured; the first call of the parts was the warm-up."""
        median = statistics.median(self.seconds)
        parts = {
            name: statistics.median(seconds[-len(self.seconds) :])
            for name, seconds in self.parts.seconds.items()
        }
        height, width = self.images.shape[2:]
        return dict(
            mode='detector',
            detector=self.detector.heads,
            model=self.detector.model,
            variant=self.detector.variant,
            compiled=False,
            pyramid=True,
            size=f'{height}x{width}',
            batch=len(self.images),
            dtype=self.dtype,
            repeats=len(self.seconds),
            parameters=sum(p.numel() for p in self.model.parameters()),
            detections=self.found,
            median_s=median,
            min_s=min(self.seconds),
            max_s=max(self.seconds),
            images_per_s=len(self.images) / median,
            backbone_s=parts['backbone'],
            neck_s=parts['neck'],
            backbone_share=parts['backbone'] / median,
            neck_share=parts['neck'] / median,
            head_share=1 - (parts['backbone'] + parts['neck']) / median,
            peak_bytes=peak_memory_cuda(self) if self.device == 'cuda' else None,
        )


def run_detectors(
    detectors: Sequence[Detector],
    *,
    sizes: Sequence[Size],
    batches: Sequence[int],
    dtypes: Sequence[str],
    repeats: int,
    device: str,
) -> list[dict]:
    """Measure all detectors in all cases, in rounds; a row each.

    Raises:
        RuntimeError: A detector finds nothing, so a figure would mean nothing.
    """
    cases = list(product(dtypes, batches, sizes))
    costs = [batch * h * w for _, batch, (h, w) in cases]
    progress = Progress(sum(costs) * len(detectors) * (repeats + 1))
    rows = []
    for (dtype, batch, size), cost in zip(cases, costs):
        case = f'{size[0]}x{size[1]}, {batch} image(s), {dtype}'
        passes = [Pass(detector, size, batch, dtype, device) for detector in detectors]
        for one in passes:
            one()
            progress.step(f'{one.detector.label}, {case}: warm-up', cost)
        for i in range(repeats):
            for one in passes[i % len(passes) :] + passes[: i % len(passes)]:
                one.seconds.append(timed(one, device))
                progress.step(
                    f'{one.detector.label}, {case}: {one.seconds[-1]:.4g} s ({i + 1}/{repeats})',
                    cost,
                )
        rows += compare([one.row() for one in passes])
    return rows


def compare(rows: list[dict]) -> list[dict]:
    """The rows of a case with their speed relative to Swin-B and to `dense`, with equal heads."""
    seconds = {(row['detector'], row['model'], row['variant']): row['median_s'] for row in rows}
    return [
        row
        | dict(
            to_peer=seconds[row['detector'], PEER, 'peer'] / row['median_s'],
            to_dense=seconds.get((row['detector'], row['model'], 'dense'), row['median_s'])
            / row['median_s'],
        )
        for row in rows
    ]
