"""The EMA teacher through a real Runner: once per optimizer step, and never from a stale start."""

from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.runner import Runner
from torch import Tensor, nn

from itpn_mm.engine import EMATeacherHook

MOMENTUM = 0.25


class Student(BaseModel):
    """A backbone of one layer with its teacher; remembers the weights after each iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.teacher = ExponentialMovingAverage(self.backbone, momentum=MOMENTUM)
        nn.init.zeros_(self.backbone.bias)
        self.history: list[Tensor] = []

    def init_weights(self) -> None:
        """Move the online backbone away from the copy that the constructor made."""
        nn.init.constant_(self.backbone.weight, 0.5)

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        return {'loss': (self.backbone(inputs) - 1).square().mean()}

    def train_step(self, data, optim_wrapper) -> dict[str, Tensor]:
        losses = super().train_step(data, optim_wrapper)
        self.history.append(self.backbone.weight.detach().clone())
        return losses


class Inputs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'inputs': torch.tensor([1.0, index])}


def make_runner(work_dir: Path, model: nn.Module, counts: int = 1, **kwargs) -> Runner:
    settings = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Inputs(),
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(accumulative_counts=counts, optimizer=dict(type='SGD', lr=0.02)),
        custom_hooks=[dict(type='itpn_mm.EMATeacherHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=True)),
        log_level='ERROR',
        experiment_name=f'ema_{work_dir.name}_{counts}_{len(kwargs)}',
    )
    return Runner(**{**settings, **kwargs})


@pytest.mark.parametrize(
    ('counts', 'steps_after'),
    [
        (1, [1, 2, 3, 4, 5, 6, 7]),
        (3, [3, 6, 7]),  # the last step is made of what remains
        (7, [7]),
        (10, [7]),
    ],
)
def test_teacher_moves_once_per_optimizer_step(tmp_path, counts, steps_after):
    model = Student()
    make_runner(tmp_path, model, counts).train()

    assert model.teacher.steps == 1 + len(steps_after)  # the first is the copy before training
    changed = [model.history[0].new_full((2, 2), 0.5), *model.history]
    moved = [i + 1 for i in range(7) if not torch.equal(changed[i], changed[i + 1])]
    assert moved == steps_after
    expected = changed[0]
    for i in steps_after:
        expected = (1 - MOMENTUM) * expected + MOMENTUM * model.history[i - 1]
    torch.testing.assert_close(model.teacher.module.weight, expected)


def test_teacher_starts_from_the_initialised_backbone(tmp_path):
    model = Student()
    runner = make_runner(tmp_path, model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)))
    assert not torch.equal(model.teacher.module.weight, torch.full((2, 2), 0.5))
    runner.train()
    assert torch.equal(model.teacher.module.weight, torch.full((2, 2), 0.5))


def test_resumed_teacher_goes_on(tmp_path):
    two_epochs = dict(train_cfg=dict(by_epoch=True, max_epochs=2))
    whole, first, resumed = Student(), Student(), Student()
    make_runner(tmp_path / 'whole', whole, **two_epochs).train()
    make_runner(tmp_path / 'first', first).train()
    resume = dict(resume=True, load_from=str(tmp_path / 'first' / 'epoch_1.pth'))
    make_runner(tmp_path / 'resumed', resumed, **two_epochs, **resume).train()

    assert (first.teacher.steps, resumed.teacher.steps) == (1 + 7, 1 + 14)
    assert torch.equal(resumed.teacher.module.weight, whole.teacher.module.weight)


def test_wrapped_model_is_unwrapped(tmp_path):
    model = Student()
    runner = make_runner(tmp_path, model)
    runner.model = nn.DataParallel(model)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    hook = EMATeacherHook()
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    assert model.teacher.steps == 2


@pytest.mark.parametrize('teacher', [None, nn.Linear(2, 2)])
def test_model_without_ema_teacher_is_an_error(tmp_path, teacher):
    model = Student()
    model.teacher = teacher
    with pytest.raises(ValueError, match=r'EMATeacherHook, but Student\.teacher is (None|Linear)'):
        make_runner(tmp_path, model).train()
