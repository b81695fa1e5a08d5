"""How a folder of pictures is trained on: batch, crops of a picture in an epoch, rate, length."""

import math
from dataclasses import dataclass

from mmengine.config import Config

from .trial import Trial

MIN_STEPS = 20  # of an epoch
EPOCHS = 300  # the shortest schedule of the authors
BATCH_SIZES = dict(cuda=64, cpu=32)  # where the pictures suffice


@dataclass(frozen=True)
class Plan:
    """Settings of a pre-training.

    Args:
        pictures: Pictures to train on.
        batch_size: Crops in a step.
        repeats: Crops of each picture in an epoch.
        lr: Learning rate, for this batch.
        epochs: Length; the rate falls to its end over all of it.
        warmup_share: Share of it in which the rate rises.
    """

    pictures: int
    batch_size: int
    repeats: int
    lr: float
    epochs: int
    warmup_share: float

    @property
    def steps(self) -> int:
        """Steps of an epoch; what is left over for a whole batch waits for the next one."""
        return self.pictures * self.repeats // self.batch_size

    @property
    def warmup(self) -> int:
        """Epochs in which the rate rises."""
        return min(max(1, round(self.warmup_share * self.epochs)), self.epochs - 1)

    @property
    def save_interval(self) -> int:
        """Epochs from one checkpoint to the next: at most a twentieth of a run is lost."""
        return max(1, self.epochs // 20)


def make_plan(
    base: Config, pictures: int, device: str, batch_size: int | None, epochs: int = EPOCHS
) -> Plan:
    """Choose the settings.

    The rate is that of `base` times the root of the ratio of the batches, which keeps the noise of
    AdamW's steps as it is (Malladi et al., NeurIPS 2022); in proportion to the batch, it would be
    next to nothing for the batches of one machine.

    Args:
        base: Config of a pre-training, for a batch of its own.
        pictures: Pictures to train on.
        device: `'cuda'` or `'cpu'`.
        batch_size: Crops in a step; by default as many as usual, or as there are pictures, rounded
            down to a power of two.
        epochs: Length.

    Raises:
        ValueError: There are fewer pictures than `batch_size`.
    """
    largest = 1 << (pictures.bit_length() - 1)
    if batch_size is None:
        batch_size = min(BATCH_SIZES[device], largest)
    if pictures < batch_size:
        raise ValueError(
            f'--batch-size must be at most the number of pictures to train on, {pictures}, but got '
            f'{batch_size}: take {largest}, or more pictures'
        )
    usual = base.auto_scale_lr.base_batch_size
    return Plan(
        pictures=pictures,
        batch_size=batch_size,
        repeats=max(1, math.ceil(MIN_STEPS * batch_size / pictures)),
        lr=float(f'{base.optim_wrapper.optimizer.lr * math.sqrt(batch_size / usual):.3g}'),
        epochs=epochs,
        warmup_share=base.param_scheduler[0].end / base.train_cfg.max_epochs,
    )


def epochs_within(hours: float, plan: Plan, seconds: float) -> int:
    """Whole epochs of `plan` that fit into `hours` if a step takes `seconds`; at least one."""
    return max(1, int(hours * 3600 / (plan.steps * seconds)))


def describe(plan: Plan, trial: Trial, device: str) -> list[str]:
    """What was chosen, and what it is expected to cost."""
    epoch = plan.steps * trial.seconds
    lines = [
        f'{plan.steps} steps of {plan.batch_size} crops in an epoch, {plan.epochs} epochs, '
        f'{plan.steps * plan.epochs} steps',
        f'learning rate {plan.lr:g}: that of the config, times the root of the ratio of the '
        f'batches; it rises for {plan.warmup} of the epochs, then falls',
        f'on the {device.upper()} about {length(epoch)} an epoch, {length(epoch * plan.epochs)} in '
        f'all, and {trial.gigabytes:.1f} GB',
    ]
    if plan.repeats > 1:
        lines.insert(
            0,
            f'few pictures: {plan.repeats} random crops of each in an epoch, so that it has at '
            f'least {MIN_STEPS} steps',
        )
    if trial.read > trial.compute:
        lines.append(
            f'reading the pictures of a step takes {trial.read:.2g} s and computing '
            f'{trial.compute:.2g} s: it would be faster with pictures that are made smaller before'
        )
    return lines


def length(seconds: float) -> str:
    """A duration, in the unit that suits it."""
    for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60)):
        if seconds >= 1.5 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} seconds'
