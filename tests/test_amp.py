"""Mixed precision in whole runs on the CPU: bfloat16 learns as float32 does, overflows are skipped.

mmengine's AmpOptimWrapper asks for an accelerator and its scaler for CUDA, though both work here.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from itpn_mm.engine import NonFiniteHook
from tests import test_swap_in
from tests.test_pretraining.models import build_itpn
from tests.test_processes.runs import SIDE, training
from tests.tiny_configs import plain_text

pytest.importorskip('mmpretrain')

pytestmark = pytest.mark.checklist('amp')

STEPS, LAST = 100, 20
OVERFLOWS = (3, 4, 5)


@pytest.fixture(autouse=True)
def amp_on_cpu(monkeypatch) -> None:
    monkeypatch.setattr(f'{AmpOptimWrapper.__module__}.is_cuda_available', lambda: True)
    scaler = partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(f'{AmpOptimWrapper.__module__}.GradScaler', scaler)


class Watch(Hook):
    """Notes what a step did to weights and scale; spoils the gradients of some."""

    priority = 'VERY_LOW'

    def __init__(self, overflows: Sequence[int]) -> None:
        self.overflows, self.changed, self.scales = overflows, [], []

    def before_train(self, runner: Runner) -> None:
        self.watched = max(runner.model.parameters(), key=lambda p: p.requires_grad * p.numel())
        self.watched.register_hook(
            lambda grad: grad * torch.inf if runner.iter in self.overflows else None
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        self.before = self.watched.detach().clone()

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.changed.append(not torch.equal(self.before, self.watched))
        self.scales.append(runner.optim_wrapper.loss_scaler.get_scale())


def run(folder: Path, *hooks: Hook) -> Runner:
    """Eight steps of a pre-training in mixed precision with a scale of 2^10."""
    cfg, scaler = training(folder, 8), dict(init_scale=2.0**10, growth_interval=10**6)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=scaler)
    with plain_text():
        runner = Runner.from_cfg(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
    return runner


def test_steps_that_overflow_are_skipped_and_counted(tmp_path, record_figure):
    """The scale halves at each, and training goes on; the guard counts and does not stop."""
    watch, guard = Watch(OVERFLOWS), NonFiniteHook()
    runner = run(tmp_path, guard, watch)
    assert watch.changed == [i not in OVERFLOWS for i in range(8)]
    assert watch.scales == [2.0**10] * 3 + [2.0**9, 2.0**8] + [2.0**7] * 3
    assert guard.overflows == len(OVERFLOWS) and not guard.skipped
    assert all(p.isfinite().all() for p in runner.model.parameters())
    record_figure('overflows injected, skipped and counted', guard.overflows, f'= {len(OVERFLOWS)}')


def test_endless_overflows_stop_the_run(tmp_path):
    guard = NonFiniteHook(max_overflows=2)
    with pytest.raises(FloatingPointError, match='3 steps in a row overflow'):
        run(tmp_path, guard, Watch(range(2, 8)))


def pretraining(folder: Path) -> tuple[nn.Module, dict]:
    """Images that can be completed, as noise cannot; the teacher stays as it is."""
    images = F.interpolate(torch.randn(8, 3, 4, 4), size=SIDE, mode='bicubic')
    return build_itpn(data_preprocessor=dict(type='BaseDataPreprocessor')), dict(inputs=images)


def detector(folder: Path) -> tuple[nn.Module, dict]:
    """RetinaNet, whose losses have no part in chance; mmcv's NMS has no bfloat16 on a CPU."""
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(test_swap_in.write(folder, 'retinanet', 'hivit-base'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(test_swap_in.shrink(cfg, 'retinanet'))
    return model, test_swap_in.make_batch('retinanet')


def learn(model: nn.Module, batch: dict, precision: str) -> torch.Tensor:
    """The losses of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    if precision == 'float32':
        wrapper = OptimWrapper(optimizer)
    else:
        wrapper = AmpOptimWrapper(dtype=precision, optimizer=optimizer)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)  # the same masks
        losses.append(model.train().train_step(copy.deepcopy(batch), wrapper)['loss'].item())
    return torch.tensor(losses)


@pytest.mark.slow
@pytest.mark.parametrize('make', [pretraining, detector])
def test_bfloat16_learns_as_float32(make: Callable, tmp_path, record_figure):
    model, batch = make(tmp_path)
    exact = learn(copy.deepcopy(model), batch, 'float32')
    rough = learn(model, batch, 'bfloat16')
    assert rough.isfinite().all() and not torch.equal(exact, rough)
    print(exact[::10], rough[::10])
    assert exact[-LAST:].mean() < 0.8 * exact[:LAST].mean()  # it learns
    difference = (rough[-LAST:].mean() / exact[-LAST:].mean() - 1).abs().item()
    what = f'{make.__name__}, bfloat16: loss of steps {STEPS - LAST + 1} to {STEPS}'
    record_figure(what, difference, '<= 0.02')
    assert difference <= 0.02
