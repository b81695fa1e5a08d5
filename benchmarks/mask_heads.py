"""Training steps of the mask heads alone: MaskDINO beside mmdet's Mask2Former.

    python -m benchmarks.mask_heads '{"head": "maskdino", "case": {"size": [512, 512]}}'

prints the peak memory of one step in bytes, of a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import wraps

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from benchmarks.measure import peak_memory_cpu, peak_memory_cuda, run_fresh, timed
from benchmarks.progress import Progress

MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
PEER = 'mask2former'
HEADS = (PEER, 'maskdino', 'maskdino-no-denoising')
CHANNELS, STRIDES, CLASSES = 256, (4, 8, 16, 32), 80
PARTS = ('pixel decoder', 'decoder', 'matching and losses', 'backward')


@dataclass(frozen=True)
class Case:
    """What a step is: `objects` in each of `batch` images, their masks rectangles."""

    size: tuple[int, int]
    batch: int = 2
    queries: int = 100
    objects: int = 20
    dtype: str = 'fp32'
    device: str = 'cpu'

    @property
    def label(self) -> str:
        """One phrase."""
        height, width = self.size
        return f'{height}x{width}, batch {self.batch}, {self.queries} queries, {self.dtype}'


def head_config(head: str, queries: int, small: bool = False) -> ConfigDict:
    """Config of a head: 3 levels, 6 encoder and 9 decoder layers, MLPs of 1024 and 2048.

    Args:
        head: One of :data:`HEADS`.
        queries: Queries that are matched; denoising adds 100.
        small: With a layer of each, for tests.
    """
    cfg = Config.fromstring(f"_base_ = '{MASK2FORMER}'", '.py')
    init_default_scope(cfg.default_scope)
    encoder, decoder = (1, 1) if small else (6, 9)
    if head == PEER:
        found = cfg.model.panoptic_head
        found.update(
            in_channels=[CHANNELS] * len(STRIDES),
            num_queries=queries,
            train_cfg=cfg.model.train_cfg,
            test_cfg=cfg.model.test_cfg,
        )
        found.pixel_decoder.encoder.num_layers = encoder
        found.transformer_decoder.num_layers = decoder
        return found
    return ConfigDict(
        type='itpn_mm.MaskDINOHead',
        num_things_classes=CLASSES,
        in_channels=[CHANNELS] * len(STRIDES),
        num_queries=queries,
        pixel_decoder=dict(num_levels=3, num_layers=encoder, feedforward_channels=1024),
        transformer_decoder=dict(num_layers=decoder, feedforward_channels=2048),
        two_stage=True,
        box_init='mask2box',
        denoising=dict(num_queries=100) if head == 'maskdino' else None,
    )


class Step:
    """A head, maps and objects; each call is a forward and a backward pass of the losses."""

    def __init__(self, head: str, case: Case, small: bool = False) -> None:
        self.name, self.case = head, case
        torch.manual_seed(0)
        self.head = MODELS.build(head_config(head, case.queries, small)).to(case.device).train()
        MMLogger.get_instance('benchmark', log_level='WARNING')  # or each parameter is a line
        self.head.init_weights()
        height, width = case.size
        generator = torch.Generator().manual_seed(0)
        self.maps = [
            torch.randn(case.batch, CHANNELS, height // s, width // s, generator=generator)
            .to(case.device)
            .requires_grad_()
            for s in STRIDES
        ]
        self.samples = make_samples(case)
        self.seconds: list[dict[str, float]] = []
        self._spent: dict[str, float] = {}
        self._measure(self.head.pixel_decoder, 'forward', PARTS[0])
        if head == PEER:
            self._measure(self.head, 'loss_by_feat', PARTS[2])
        else:
            self._measure(self.head.criterion, 'forward', PARTS[2])

    def _measure(self, owner: nn.Module, method: str, part: str) -> None:
        original = getattr(owner, method)

        @wraps(original)
        def measured(*args: object, **kwargs: object) -> object:
            start = self._now()
            result = original(*args, **kwargs)
            self._spent[part] = self._spent.get(part, 0) + self._now() - start
            return result

        setattr(owner, method, measured)

    def _now(self) -> float:
        if self.case.device == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()

    def precision(self) -> AbstractContextManager:
        """Context of the forward pass: half precision on a GPU, bfloat16 on a CPU."""
        if self.case.dtype == 'fp32':
            return nullcontext()
        kind = torch.float16 if self.case.device == 'cuda' else torch.bfloat16
        return torch.autocast(self.case.device, kind)

    def __call__(self) -> None:
        self._spent.clear()
        for tensor in (*self.maps, *self.head.parameters()):
            tensor.grad = None
        start = self._now()
        with self.precision():
            loss = sum(self.head.loss(self.maps, self.samples).values())
        forward = self._now() - start
        loss.backward()
        total = self._now() - start
        known = sum(self._spent.values())
        self._spent.update({PARTS[1]: forward - known, PARTS[3]: total - forward})
        if not loss.isfinite():
            raise RuntimeError(f'the loss of {self.name} is {float(loss)}')
        self.seconds.append({part: self._spent[part] for part in PARTS})

    def row(self, peak_bytes: int) -> dict:
        """What was measured after the first step, which is the warm-up."""
        runs = self.seconds[1:]
        totals = [sum(run.values()) for run in runs]
        middle = statistics.median(totals)
        return dict(
            head=self.name,
            **asdict(self.case),
            parameters=sum(p.numel() for p in self.head.parameters()),
            repeats=len(runs),
            median_s=middle,
            min_s=min(totals),
            max_s=max(totals),
            parts={part: statistics.median(run[part] for run in runs) for part in PARTS},
            peak_bytes=peak_bytes,
        )


def make_samples(case: Case) -> list[DetDataSample]:
    """Rectangles of a sixteenth to a quarter of a side."""
    random = np.random.RandomState(0)
    height, width = case.size
    samples = []
    for _ in range(case.batch):
        masks = np.zeros((case.objects, height, width), np.uint8)
        for mask in masks:
            h, w = (
                random.randint(height // 16, height // 4),
                random.randint(width // 16, width // 4),
            )
            y, x = random.randint(height - h), random.randint(width - w)
            mask[y : y + h, x : x + w] = 1
        meta = dict(img_shape=case.size, ori_shape=case.size, batch_input_shape=case.size)
        sample = DetDataSample(metainfo=meta | dict(pad_shape=case.size))
        sample.gt_instances = InstanceData(
            labels=torch.from_numpy(random.randint(0, CLASSES, case.objects)).to(case.device),
            bboxes=torch.zeros(case.objects, 4, device=case.device),
            masks=BitmapMasks(masks, height, width),
        )
        samples.append(sample)
    return samples


def run_mask_heads(
    heads: Sequence[str], cases: Sequence[Case], repeats: int, small: bool = False
) -> list[dict]:
    """Measure all heads in all cases, in rounds; a row each, with what it is relative to the peer.

    Raises:
        RuntimeError: A loss is not finite.
    """
    costs = [case.batch * case.size[0] * case.size[1] for case in cases]
    progress = Progress(sum(costs) * len(heads) * (repeats + 2))
    rows = []
    for case, cost in zip(cases, costs):
        peaks = {}
        for head in heads:
            peaks[head] = peak_of(head, case, small)
            progress.step(f'{head}, {case.label}: memory', cost)
        steps = [Step(head, case, small) for head in heads]
        for i in range(repeats + 1):
            for step in steps[i % len(steps) :] + steps[: i % len(steps)]:
                seconds = timed(step, case.device)
                what = f'{seconds:.4g} s ({i}/{repeats})' if i else 'warm-up'
                progress.step(f'{step.name}, {case.label}: {what}', cost)
        found = [step.row(peaks[step.name]) for step in steps]
        rows += compare(found)
    return rows


def compare(rows: list[dict]) -> list[dict]:
    """The rows of a case with time and memory relative to Mask2Former."""
    peer = next(row for row in rows if row['head'] == PEER)
    return [
        row
        | dict(
            time_to_peer=row['median_s'] / peer['median_s'],
            memory_to_peer=row['peak_bytes'] / peer['peak_bytes'],
        )
        for row in rows
    ]


def peak_of(head: str, case: Case, small: bool) -> int:
    """Bytes that a step takes at most on top of weights and maps."""
    if case.device == 'cuda':
        step = Step(head, case, small)
        step()
        return peak_memory_cuda(step)
    spec = json.dumps(dict(head=head, case=asdict(case), small=small))
    return int(run_fresh([spec], module='benchmarks.mask_heads').split()[-1])


def main(spec: str) -> None:
    """Print the peak of one step in bytes."""
    given = json.loads(spec)
    case = Case(**given['case'] | dict(size=tuple(given['case']['size'])))
    step: Callable[[], None] = Step(given['head'], case, given.get('small', False))
    step()  # libraries make their own buffers at the first call with new shapes
    for tensor in (*step.maps, *step.head.parameters()):
        tensor.grad = None
    print(peak_memory_cpu(step))


if __name__ == '__main__':
    main(*sys.argv[1:])
