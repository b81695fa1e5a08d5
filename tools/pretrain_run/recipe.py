"""The config of a pre-training on a folder, as a text that can be read and changed."""

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

from itpn_mm.recipes import BACKBONES, PYRAMIDS, WIDTH

from .models import PATCH, SMALL, Teacher
from .plan import Plan

OPTIONS = '# Options: '
# Masks of a teacher's student, of the 196 patches of 224 pixels.
MASKED, LEAST, PATCHES = 75, 16, 196


def write_config(
    base: Path,
    plan: Plan,
    *,
    model: str,
    image_size: int,
    device: str,
    workers: int,
    data_set: dict,
    teacher: Teacher | None = None,
    init: Path | None = None,
    options: dict[str, Any],
) -> str:
    """Text of the config.

    Args:
        base: The config that it starts from.
        plan: Settings.
        model: Name of the model.
        image_size: Side of the crops.
        device: `'cuda'` or `'cpu'`; mixed precision is for the first.
        workers: Processes that load pictures.
        data_set: Config of the data set, without a pipeline.
        teacher: CLIP's image encoder; None to learn from pixels.
        init: File to start from.
        options: Of the command, noted down to tell one run from another.
    """
    parts = [_model(model, image_size, teacher)]
    parts.append(_pipeline(image_size, teacher))
    parts.append(_loader(plan, workers, data_set))
    parts.append(_schedule(plan, model != SMALL and device == 'cuda'))
    if init is not None:
        parts.append(f'# Read safely, renamed and resized; the log says what was loaded.\n'
                     f'load_from = {str(init)!r}')  # fmt: skip
    return '\n\n'.join(
        [
            f'# Written by tools/pretrain_folder.py. To go on with it as it is, or changed:\n'
            f'#     python tools/train.py THIS_FILE --work-dir FOLDER --resume\n'
            f'{OPTIONS}{json.dumps(options)}\n'
            f'_base_ = {str(base)!r}',
            *parts,
        ]
    ) + '\n'  # fmt: skip


def read_options(path: Path) -> dict[str, Any] | None:
    """Options of the command that wrote a config; None if none did."""
    lines = [x for x in path.read_text(encoding='utf-8').splitlines() if x.startswith(OPTIONS)]
    return json.loads(lines[0].removeprefix(OPTIONS)) if lines else None


def _model(model: str, image_size: int, teacher: Teacher | None) -> str:
    if teacher is None and model.startswith('fastitpn'):
        size = model.split('-')[1]
        return f"""\
# Fast-iTPN and its pyramid in the place of HiViT, whose widths they have.
model = dict(
    backbone=dict(
        _delete_=True, type='itpn_mm.FastiTPN', arch={size!r}, img_size={image_size}
    ),
    neck=dict(depth=1, bias=True),
    decoder=dict(img_size={image_size}),
)"""
    if teacher is None:
        return f"""\
model = dict(backbone=dict(img_size={image_size}), decoder=dict(img_size={image_size}))"""
    grid = image_size // PATCH
    auxiliary = '' if model.startswith('fastitpn') else (
        f'\n    aux_head=dict(grid=({grid}, {grid}), target_dims={teacher.width}),'
    )  # fmt: skip
    return f"""\
# As many patches of the teacher, which have {teacher.patch} pixels, as of the student.
model = dict(
    backbone=dict(img_size={image_size}),
    head=dict(target_dims={teacher.width}),{auxiliary}
    teacher=dict(
        checkpoint={str(teacher.path)!r},
        img_size={grid * teacher.patch},
    ),
)"""


def _pipeline(image_size: int, teacher: Teacher | None) -> str:
    if teacher is None:
        change = f'train_pipeline[1].update(scale={image_size})'
    else:
        grid = image_size // PATCH
        masked, least = (round(n * grid**2 / PATCHES) for n in (MASKED, LEAST))
        change = f"""\
train_pipeline[3].update(size={image_size}, second_size={grid * teacher.patch})
train_pipeline[4].update(
    input_size={grid}, num_masking_patches={masked}, max_num_patches={masked},
    min_num_patches={max(1, least)},
)"""
    return f'train_pipeline = _base_.train_pipeline\n{change}'


def _loader(plan: Plan, workers: int, data_set: dict) -> str:
    lines = ''.join(f'            {key}={value!r},\n' for key, value in data_set.items())
    return f"""\
# {plan.pictures} pictures, of each {plan.repeats} random crops in an epoch of {plan.steps} steps.
train_dataloader = dict(
    _delete_=True,
    batch_size={plan.batch_size},
    num_workers={workers},
    persistent_workers={workers > 0},
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='RepeatDataset',
        times={plan.repeats},
        dataset=dict(
{lines}            pipeline=train_pipeline,
        ),
    ),
)
# A picture that is spoiled from now on is passed over, and named in the log.
custom_hooks = [*_base_.get('custom_hooks', []), dict(type='itpn_mm.SkipBadSamplesHook')]"""


def _schedule(plan: Plan, amp: bool) -> str:
    warmup, epochs = plan.warmup, plan.epochs
    if warmup:
        change = f"""\
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end={warmup})
param_scheduler[1].update(begin={warmup}, T_max={epochs - warmup}, end={epochs})"""
    else:
        change = f"""\
param_scheduler = _base_.param_scheduler[1:]
param_scheduler[0].update(begin=0, T_max={epochs}, end={epochs})"""
    precision = (
        ''
        if amp
        else """
optim_wrapper.update(type='OptimWrapper')  # full precision
optim_wrapper.pop('loss_scale', None)"""
    )
    return f"""\
train_cfg = dict(max_epochs={epochs})
{change}
optim_wrapper = _base_.optim_wrapper
optim_wrapper.optimizer.update(lr={plan.lr})
optim_wrapper.update(_delete_=True, clip_grad=dict(max_norm=3.0)){precision}
auto_scale_lr = dict(_delete_=True, base_batch_size={plan.batch_size})

default_hooks = dict(
    logger=dict(type='LoggerHook', interval={min(50, plan.steps)}),
    checkpoint=dict(interval={plan.save_interval}, max_keep_ckpts=2),
)
randomness = dict(_delete_=True, seed=0, diff_rank_seed=True)"""


def swap_in_line(cfg: Config, model: str, checkpoint: Path) -> str:
    """The call of `swap_in` that puts what was trained into a detector."""
    family = model.split('-')[0]
    backbone, neck = cfg.model.backbone, cfg.model.neck
    trunk = 'hivit-tiny' if model == SMALL else model
    usual = dict(type=backbone.type, arch=trunk.split('-')[1], img_size=224)
    more = {k: v for k, v in backbone.items() if k != 'drop_path_rate' and usual.get(k) != v}
    usual = dict(PYRAMIDS[family], out_channels=WIDTH)
    pyramid = {k: neck[k] for k in usual if neck.get(k) != usual[k]}
    if pyramid:
        more['neck'] = pyramid
    assert backbone.type == f'itpn_mm.{BACKBONES[family].__name__}'
    given = ''.join(f', {key}={_shown(value)}' for key, value in more.items())
    return f'model = swap_in(_base_.model, {trunk!r}, {str(checkpoint)!r}{given})'


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f'dict({", ".join(f"{k}={_shown(v)}" for k, v in value.items())})'
    return repr(value)
