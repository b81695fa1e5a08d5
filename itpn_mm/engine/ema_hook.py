"""Keeps the EMA teacher of a pre-training model in step with the optimizer."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from itpn_mm.registry import HOOKS

from .fsdp import whole_root
from .wrappers import has_stepped, unwrap


@HOOKS.register_module()
class EMATeacherHook(Hook):
    """Copy `model.backbone` into `model.teacher` before training, then average it in.

    The teacher is an `mmengine.model.ExponentialMovingAverage`, such as `itpn_mm.EMATeacher`. It is
    filled after the checkpoint was loaded, unless that held a teacher already trained, and moves
    once for each step of the optimizer, not for each iteration of gradient accumulation. (A step
    that mixed precision skips because of an infinite gradient counts as one: nothing tells.)

    It works in FSDP by `itpn_mm.FSDPStrategy`, and in stages 1 and 2 of DeepSpeed's ZeRO.

    Raises:
        ValueError: The model has no such teacher, or it cannot follow: weights in half precision
            lose its small steps, and stage 3 of ZeRO keeps each weight on one process only.
    """

    def before_train(self, runner: Runner) -> None:
        """Start the teacher as a copy of the online backbone."""
        model = unwrap(runner.model)
        teacher = getattr(model, 'teacher', None)
        if not hasattr(teacher, 'update_parameters') or not hasattr(model, 'backbone'):
            raise ValueError(
                f'`custom_hooks` has {type(self).__name__}, but {type(model).__name__}.teacher is '
                f'{type(teacher).__name__}; give the model an EMA teacher or remove the hook'
            )
        weight = next(model.backbone.parameters())
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f'weights are in {weight.dtype}, in which the EMA teacher cannot follow in small '
                'steps; keep them in float32 and use autocast: AmpOptimWrapper, or '
                '`torch_autocast` of DeepSpeed'
            )
        if hasattr(weight, 'ds_id'):
            raise ValueError(
                'stage 3 of ZeRO shards the weights that the EMA teacher follows; take stage 1 or '
                "2, or `strategy=dict(type='itpn_mm.FSDPStrategy')`"
            )
        if teacher.steps == 0:
            with whole_root(runner.model):
                teacher.update_parameters(model.backbone)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Move the teacher if the iteration ended with a step of the optimizer."""
        # The count behind this answer rises in `backward` only, so here it is still the one that
        # decided about the step.
        if has_stepped(runner):
            model = unwrap(runner.model)
            with whole_root(runner.model):
                model.teacher.update_parameters(model.backbone)
