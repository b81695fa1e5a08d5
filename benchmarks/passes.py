"""Passes of all candidates, interleaved in one run: forward, or forward and backward."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.arithmetic import closed_form, counted, sum_of_means
from benchmarks.measure import peak_memory_cuda, run_fresh, timed
from benchmarks.models import Candidate, build
from benchmarks.progress import Progress
from benchmarks.selection import selection_share

# largest accepted difference of the outputs, relative to the length of a map as one vector
TOLERANCE = dict(fp32=1e-4, amp=0.1, bf16=0.1)
CHECKED = 2  # images of a batch that are compared
SELECTION_PASSES = 3
Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """What all candidates are given.

    Args:
        size: Height and width of the images.
        batch: Images in a pass.
        dtype: ``'fp32'``; ``'amp'``, autocast to bfloat16; ``'bf16'``, weights and images in it.
        device: ``'cpu'`` or ``'cuda'``.
        train: Forward and backward, instead of forward alone.
    """

    size: Size
    batch: int
    dtype: str
    device: str
    train: bool = False

    @property
    def type(self) -> torch.dtype:
        """Type of weights and images."""
        return torch.bfloat16 if self.dtype == 'bf16' else torch.float32

    def images(self) -> Tensor:
        """Random images (B, 3, H, W), in float32."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, *self.size, generator=generator).to(self.device)

    def precision(self) -> AbstractContextManager:
        """Context of a forward pass."""
        return torch.autocast(self.device, torch.bfloat16) if self.dtype == 'amp' else nullcontext()

    def run(self, model: nn.Module, img: Tensor) -> Sequence[Tensor]:
        """One pass; gives the maps."""
        with torch.set_grad_enabled(self.train), self.precision():
            maps = model(img)
            loss = sum_of_means(maps) if self.train else None
        if self.train:
            loss.backward()
        return maps

    def __str__(self) -> str:
        return f'{self.size[0]}x{self.size[1]}, {self.batch} image(s), {self.dtype}'


def relative_error(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Largest distance of two lists of maps, each an image's map as a vector, relative to the
    length of the reference.
    """
    if len(outputs) != len(references):
        raise ValueError(f'`outputs` must hold {len(references)} maps, but got {len(outputs)}')
    errors = [
        (out.cpu().double() - ref.cpu().double()).flatten(1).norm(dim=1)
        / ref.cpu().double().flatten(1).norm(dim=1)
        for out, ref in zip(outputs, references)
    ]
    return max(float(error.max()) for error in errors)


def rounds(cost: float, costs: Iterable[float], repeats: int) -> int:
    """Passes of a case: `repeats` for the most expensive one, up to 4 times as many for others."""
    return repeats * min(4, int(max(costs) / cost))


def run_passes(
    candidates: Sequence[Candidate],
    *,
    sizes: Sequence[Size],
    batches: Sequence[int],
    dtypes: Sequence[str],
    repeats: int,
    device: str,
    train: bool = False,
) -> list[dict]:
    """Measure all candidates in all cases; the `dense` one of each model must be among them.

    Peers that are not installed, or do not run in a case, are named and left out.

    Returns:
        A row for each candidate and case; `benchmarks/README.md` says what it holds.

    Raises:
        RuntimeError: Outputs are not what they must be, so a figure would mean nothing.
    """
    gflop = {}
    for size in sizes:
        for candidate in candidates:
            try:
                gflop[candidate, size] = counted(candidate.eager, size, train)
            except Exception as error:
                _skip_peer(candidate, f'{size[0]}x{size[1]}', error)
    cases = [
        Case(size, batch, dtype, device, train)
        for dtype in dtypes
        for batch in batches
        for size in sizes
    ]
    costs = {
        case: {
            candidate: case.batch * gflop[candidate, case.size]
            for candidate in candidates
            if (candidate, case.size) in gflop
        }
        for case in cases
    }
    totals = {case: sum(cost.values()) for case, cost in costs.items()}
    times = {case: rounds(total, totals.values(), repeats) for case, total in totals.items()}
    progress = Progress(
        sum(
            cost * (times[case] + len(extra_passes(candidate, case)))
            for case in cases
            for candidate, cost in costs[case].items()
        )
    )
    rows = []
    for case in cases:
        rows += _run_case(case, costs[case], times[case], progress)
    return rows


def extra_passes(candidate: Candidate, case: Case) -> list[str]:
    """What a candidate is run for besides its timing."""
    passes = ['check']
    if case.train or candidate.compiled:
        passes.append('warm-up')
    if case.device == 'cuda' or not candidate.compiled:
        passes += ['memory'] if case.device == 'cuda' else ['memory', 'memory']  # one before
    if candidate.accelerated and not (candidate.compiled or case.train):
        passes += ['selection'] * SELECTION_PASSES
    return passes


def _run_case(
    case: Case, costs: dict[Candidate, float], repeats: int, progress: Progress
) -> list[dict]:
    group = Group(case, costs, progress)
    group.check()
    group.time(repeats)
    group.measure_memory()
    group.measure_selection()
    return group.rows()


def _skip_peer(candidate: Candidate, where: str, error: Exception) -> None:
    if candidate.variant != 'peer':
        raise error
    reason = str(error).strip() or type(error).__name__
    print(f'{candidate.model} is left out at {where}: {reason.splitlines()[0]}')


def _prepare_compiler(candidates: int) -> None:
    """Room for the code of all candidates: they share functions, each compiled for each of them.

    Beyond the limit, torch would silently run them in eager mode.
    """
    torch.compiler.reset()  # what an earlier case compiled is not needed any more
    torch._dynamo.config.cache_size_limit = max(8, 2 * candidates)
    torch._dynamo.config.accumulated_cache_size_limit = max(256, 128 * candidates)


class Group:
    """The candidates of one case."""

    def __init__(self, case: Case, costs: dict[Candidate, float], progress: Progress) -> None:
        self.case, self.costs, self.progress = case, costs, progress
        self.models: dict[Candidate, nn.Module] = {}
        self.errors: dict[Candidate, float] = {}
        self.seconds: dict[Candidate, list[float]] = {}
        self.peaks: dict[Candidate, int] = {}
        self.shares: dict[Candidate, float] = {}
        eager: dict[Candidate, nn.Module] = {}
        for candidate in sorted(costs, key=lambda candidate: candidate.variant != 'dense'):
            if candidate.eager not in eager:
                dense = eager.get(replace(candidate.eager, variant='dense'))
                model = build(candidate.eager, case.size, dense)
                model.train(case.train)
                eager[candidate.eager] = model.to(case.device)
        self.references = self._make_references(eager)
        if any(candidate.compiled for candidate in costs):
            _prepare_compiler(len(costs))
        for candidate in costs:
            model = eager[candidate.eager].to(case.type)
            self.models[candidate] = (
                torch.compile(model, dynamic=False) if candidate.compiled else model
            )
        self.img = case.images().to(case.type)

    @torch.no_grad()
    def _make_references(self, models: dict[Candidate, nn.Module]) -> dict[str, list[Tensor]]:
        """Outputs of the dense models, in float32 and eager mode."""
        img = self.case.images()[:CHECKED]
        return {
            candidate.model: [x.cpu() for x in model(img)]
            for candidate, model in models.items()
            if candidate.variant == 'dense'
        }

    def _step(self, candidate: Candidate, text: str, passes: int = 1) -> None:
        text = f'{candidate.model} {self.case}, {candidate.label}: {text}'
        self.progress.step(text, passes * self.costs[candidate])

    def check(self) -> None:
        """The first pass: dense outputs must be equal, all others of equal shapes and finite."""
        for candidate in list(self.models):
            try:
                with torch.no_grad(), self.case.precision():
                    maps = self.models[candidate](self.img)
            except Exception as error:
                _skip_peer(candidate, str(self.case), error)
                del self.models[candidate]
                continue
            self._check_maps(candidate, maps)
            del maps
            if 'warm-up' in extra_passes(candidate, self.case):
                self._pass(candidate)  # a backward pass, or the first one of compiled code
                self._step(candidate, 'warm-up')

    def _check_maps(self, candidate: Candidate, maps: Sequence[Tensor]) -> None:
        name = f'{candidate.model}, {candidate.label}'
        if not all(x.isfinite().all() for x in maps):
            raise RuntimeError(f'{name}: outputs are not finite; not measured')
        if candidate.variant == 'peer':
            self._step(candidate, 'first pass')
            return
        reference = self.references[candidate.model]
        found, right = ([tuple(x.shape[1:]) for x in xs] for xs in (maps, reference))
        if found != right:
            raise RuntimeError(f'{name}: maps are {found}, not {right}; not measured')
        if candidate.accelerated:
            self._step(candidate, 'first pass')
            return
        error = relative_error([x[:CHECKED] for x in maps], reference)
        self.errors[candidate] = error
        self._step(candidate, f'relative error {error:.1e}')
        limit = TOLERANCE[self.case.dtype]
        if not error < limit:
            raise RuntimeError(
                f'{name}: outputs at {self.case} differ from those of `dense` in float32 by '
                f'{error:.1e}, more than {limit}; not measured'
            )

    def _pass(self, candidate: Candidate) -> float:
        model = self.models[candidate]
        seconds = timed(partial(self.case.run, model, self.img), self.case.device)
        for parameter in model.parameters():
            parameter.grad = None
        return seconds

    def time(self, repeats: int) -> None:
        """Rounds over all candidates, each round beginning with another one."""
        order = list(self.models)
        self.seconds = {candidate: [] for candidate in order}
        for i in range(repeats):
            first = i % len(order)
            for candidate in order[first:] + order[:first]:
                seconds = self._pass(candidate)
                self.seconds[candidate].append(seconds)
                self._step(candidate, f'{seconds:.4g} s ({i + 1}/{repeats})')

    def measure_memory(self) -> None:
        """Peak of a pass on top of weights and images; on a CPU not of what is compiled."""
        for candidate in self.models:
            passes = extra_passes(candidate, self.case).count('memory')
            if not passes:
                continue
            if self.case.device == 'cuda':
                peak = peak_memory_cuda(partial(self._pass, candidate))
            else:
                spec = json.dumps(dict(candidate=asdict(candidate), case=asdict(self.case)))
                peak = int(run_fresh([spec]).split()[-1])
            self.peaks[candidate] = peak
            self._step(candidate, f'peak memory {peak / 2**20:.0f} MiB', passes)

    def measure_selection(self) -> None:
        """What accelerated candidates do besides the blocks."""
        for candidate, model in self.models.items():
            passes = extra_passes(candidate, self.case).count('selection')
            if not passes:
                continue
            with self.case.precision():
                shares = [selection_share(model, self.img, self.case.device) for _ in range(passes)]
            self.shares[candidate] = share = statistics.median(shares)
            self._step(candidate, f'selection {share:.1%} of a pass', passes)

    def rows(self) -> list[dict]:
        """What was found."""
        case, medians = self.case, {c: statistics.median(s) for c, s in self.seconds.items()}
        rows = []
        for candidate, seconds in self.seconds.items():
            median = medians[candidate]
            ours = candidate.variant != 'peer'
            dense = replace(candidate, variant='dense')
            plain = replace(candidate, variant='plain', compiled=False)
            row = dict(
                mode='train' if case.train else 'inference',
                model=candidate.model,
                variant=candidate.variant,
                compiled=candidate.compiled,
                pyramid=candidate.pyramid,
                size=f'{case.size[0]}x{case.size[1]}',
                batch=case.batch,
                dtype=case.dtype,
                repeats=len(seconds),
                parameters=sum(p.numel() for p in self.models[candidate].parameters()),
                gflop=self.costs[candidate],
                gflop_closed_form=None,
                median_s=median,
                min_s=min(seconds),
                max_s=max(seconds),
                images_per_s=case.batch / median,
                peak_bytes=self.peaks.get(candidate),
                relative_error=self.errors.get(candidate),
                to_dense=medians[dense] / median if ours else None,
                to_plain=medians[plain] / median if plain in medians else None,
                memory_to_dense=None,
                selection_to_dense=None,
            )
            if ours and not case.train:
                row['gflop_closed_form'] = case.batch * closed_form(candidate, case.size)
            if candidate in self.peaks and dense in self.peaks:
                row['memory_to_dense'] = self.peaks[dense] / self.peaks[candidate]
            if candidate in self.shares:
                row['selection_to_dense'] = self.shares[candidate] * median / medians[dense]
            rows.append(row)
        return rows
