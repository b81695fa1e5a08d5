"""What a Runner loads (`load_from`, the checkpoint of `tools/test.py`): read safely, fitted."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from torch import Tensor, nn

from ..checkpoint import LoadReport, PretrainedModule, RemapReport, remap
from ..checkpoint.architecture import take_prefix
from ..checkpoint.io import read_file, take_state
from ..checkpoint.maskdino import HEAD_PARTS, rename_head
from ..checkpoint.mismatch import explain_mismatch
from ..checkpoint.pretrained import check_share, copy_shared_table, why_optional
from ..checkpoint.report import shorten
from ..checkpoint.resize import resize_positions
from ..checkpoint.resume import check_file, newest_good
from .ema_hook import unwrap

# The Runner hands a path that starts with this to the function below instead of unpickling it.
SCHEME = 'itpn_mm://'


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_itpn_mm(filename: str, map_location: Any = None) -> dict:
    """Read a file of the authors or ours, `.pth` or safetensors, without running what it holds."""
    return dict(read_file(filename.removeprefix(SCHEME)))


def prepare_load(runner: Runner) -> None:
    """See to it that the Runner reads the file it is going to load safely.

    A file to start from or to evaluate is read by :func:`load_from_itpn_mm`. A file to resume from
    is mmengine's own and left to it, after a look whether it is whole and asks for nothing but what
    mmengine saves. Without a name it is the last one of the run that is whole, whatever mmengine
    noted down last; if there is none, training begins, from `start_from` of the config if it has
    one, which is where `tools/train.py` keeps `load_from` of a run that is started with `--resume`.

    Raises:
        ValueError: The file to resume from is damaged or asks for something else.
    """
    path = runner._resume if isinstance(runner._resume, str) else runner._load_from
    if runner._resume and path is None:
        path = _newest_good(runner.work_dir)
        runner._resume = path is not None
        if path is None:
            print_log(f'nothing to resume in {runner.work_dir}: training begins', 'current')
            path = runner.cfg.get('start_from')
        runner._load_from = path
    elif runner._resume and Path(path).expanduser().exists():
        check_file(path)
    if not runner._resume and path is not None and '://' not in str(path):
        runner._load_from = f'{SCHEME}{path}'


def _newest_good(work_dir: str) -> str | None:
    """The checkpoint to resume from, the same on all ranks; None to begin."""
    found: list[Any] = [None]
    if is_main_process():  # the others wait, also for an error
        try:
            path, damaged = newest_good(work_dir)
            for other, reason in damaged.items():
                print_log(
                    f'{other.name} is passed over, the run goes on from {path.name}: {reason}',
                    'current',
                    logging.WARNING,
                )
            found = [None if path is None else str(path)]
        except ValueError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], ValueError):
        raise found[0]
    return found[0]


def adapt_checkpoint(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Bring a checkpoint that a Runner has read into the form that its model takes, in place.

    Names of the authors become ours, positions are resized, and parts that cannot fit, such as a
    head of other classes, are left out; what was done is logged. A checkpoint that a run is resumed
    from, and one of other models, stay as they are.

    Args:
        runner: The runner.
        checkpoint: What it has read.

    Raises:
        ValueError: The checkpoint is of another architecture, has names that nothing explains, or
            lacks parameters of a model that is to be evaluated; or it is one of the authors and a
            run is to be resumed from it.
    """
    source = str(runner._load_from).removeprefix(SCHEME)
    original = take_state(checkpoint, source)
    if runner._resume:
        if remap(original)[1].layout in ('authors', 'maskdino'):
            raise ValueError(
                f'{source}: a run cannot be resumed from a file of the authors; '
                'start from it: give it as `load_from` without `resume`'
            )
        return
    model = unwrap(runner.model)
    model = model.module if isinstance(model, BaseTTAModel) else model
    parts, evaluates = dict(_parts(model)), _evaluates(runner)
    state, remapped = _to_ours(model, original, source)
    if not parts and remapped.layout != 'maskdino':
        return
    remapped.raise_if_unexplained(source)
    check_arguments(model, remapped, source, evaluates)
    report = LoadReport(type(model).__name__, source, ignored=dict(remapped.dropped))
    fit_state(model, parts, state, report)
    if evaluates:
        _require_all(report)
    print_log(
        str(report),
        'current',
        logging.WARNING if report.missing or report.unexpected else logging.INFO,
    )
    loaded = {key: state[key] for key in report.loaded}
    if 'state_dict' not in checkpoint:
        checkpoint.clear()
    if loaded.keys() != original.keys() or any(loaded[k] is not original[k] for k in loaded):
        # mmengine's EMA hooks would exchange this one, tensor by tensor, for what was fitted; it
        # is the model before averaging, and without it they start from what is loaded
        checkpoint.pop('ema_state_dict', None)
    checkpoint['state_dict'] = loaded


def load_trained(model: nn.Module, path: str) -> dict[str, Any]:
    """Load a trained file into a model without a Runner, by the same rules: to predict with it.

    Args:
        model: The model, of any OpenMMLab package.
        path: File of ours or of the authors.

    Returns:
        The `meta` of the file, which tells the classes; empty without one.

    Raises:
        ValueError: The file is unsafe, damaged or does not fit, or parameters would be random.
        FileNotFoundError: There is no such file.
    """
    checkpoint = read_file(path)
    state, report = take_state(checkpoint, path), LoadReport(type(model).__name__, path)
    parts = dict(_parts(model))
    ours, remapped = _to_ours(model, state, path)
    if parts or remapped.layout == 'maskdino':
        remapped.raise_if_unexplained(path)
        check_arguments(model, remapped, path, evaluates=True)
        state = ours
        report.ignored.update(remapped.dropped)
    fit_state(model, parts, state, report)
    _require_all(report)
    if report.unexpected or report.ignored or report.resized:
        print_log(str(report), 'current', logging.WARNING)
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    meta = checkpoint.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


def _to_ours(
    model: nn.Module, state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], RemapReport]:
    """Our layout of a state dict, a released MaskDINO's with the name of the model's head."""
    try:
        state, report = remap(state)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    part = _maskdino_head(model)
    if report.layout == 'maskdino' and part is not None:
        return rename_head(state, report, part)
    return state, report


def _maskdino_head(model: nn.Module) -> str | None:
    heads = (part for part in HEAD_PARTS if hasattr(getattr(model, part, None), 'mask_padding'))
    return next(heads, None)


def check_arguments(model: nn.Module, report: RemapReport, source: str, evaluates: bool) -> None:
    """See to it that a MaskDINO is built as its released weights need it, which no shape tells.

    Args:
        model: The model.
        report: Of translating the names; other weights need nothing.
        source: The checkpoint, for the message.
        evaluates: A difference is an error, and not a warning: in training, weights adapt.

    Raises:
        ValueError: There is a difference.
    """
    part = _maskdino_head(model)
    if part is None or not report.arguments:
        return
    head = getattr(model, part)
    needed = dict(two_stage='proposal_sizes' in report.arguments, **report.arguments)
    built = dict(
        two_stage=head.predictor.two_stage,
        double_norm=head.predictor.double_norm,
        mask_padding=head.mask_padding,
        proposal_sizes=head.predictor.proposal_sizes,
    )
    wrong = {name: value for name, value in needed.items() if built[name] != value}
    if not wrong:
        return
    said = ', '.join(f'{name}={value}' for name, value in wrong.items())
    given = ', '.join(f'{name}={built[name]}' for name in wrong)
    message = f'{source}: released weights need `{part}` to have {said}, but it has {given}'
    if evaluates:
        raise ValueError(message)
    print_log(message, 'current', logging.WARNING)


def fit_state(
    model: nn.Module,
    parts: dict[str, PretrainedModule],
    state: dict[str, Tensor],
    report: LoadReport,
) -> None:
    """Fit a state dict in our layout to a model, in place, and fill in the report.

    Args:
        model: The model.
        parts: Its backbone and neck by name.
        state: State dict with the names of the model.
        report: The report.

    Raises:
        ValueError: A part is of another architecture, or nothing fits.
    """
    target = model.state_dict()
    for name, module in parts.items():
        prefix = f'{name}.'
        found, built = take_prefix(state, prefix), take_prefix(target, prefix)
        if not found.keys() & built.keys():
            continue  # sorted out below
        mismatch = explain_mismatch(name, found, built, type(module).__name__)
        if mismatch:
            raise ValueError(f'{report.source}: the checkpoint {mismatch}')
        report.copied |= copy_shared_table(state, target, prefix)
        report.resized |= resize_positions(module, state, prefix)
    for key, tensor in state.items():
        part = key.split('.')[0]
        if key not in target:
            reason = _why_left_out(key, part, target, parts)
            if reason is None:
                report.unexpected.append(key)
            else:
                report.ignored[key] = reason
        elif tensor.shape == target[key].shape:
            report.loaded.append(key)
        elif part in parts:
            raise ValueError(
                f'{report.source}: the checkpoint does not fit {type(parts[part]).__name__}: '
                f'{key} {tuple(tensor.shape)} instead of {tuple(target[key].shape)}'
            )
        else:
            report.ignored[key] = (
                f'shape {tuple(tensor.shape)}, in the model {tuple(target[key].shape)}'
            )
    loaded = set(report.loaded)
    report.missing = [key for key in target if key not in loaded]
    counted = [key for key in target if not why_optional(key)]
    whole = sum(target[key].numel() for key in counted)
    report.loaded_share = sum(target[key].numel() for key in counted if key in loaded) / whole
    if 'backbone' in parts:
        _require_backbone(report, target, loaded)


def _parts(model: nn.Module) -> Iterator[tuple[str, PretrainedModule]]:
    for name in ('backbone', 'neck'):
        module = getattr(model, name, None)
        if isinstance(module, PretrainedModule):
            yield name, module


def _why_left_out(
    key: str, part: str, target: dict[str, Tensor], parts: dict[str, PretrainedModule]
) -> str | None:
    if reason := why_optional(key):
        return reason
    if not any(name.startswith(f'{part}.') for name in target):
        return f'part `{part}` that the model does not have'
    if part == 'neck' and part in parts:  # a pyramid instead of a norm, or levels not built
        return f'not in {type(parts[part]).__name__}'
    return None


def _require_backbone(report: LoadReport, target: dict[str, Tensor], loaded: set[str]) -> None:
    """Refuse a checkpoint whose backbone is not that of the model."""
    keys = [k for k in target if k.startswith('backbone.') and not why_optional(k)]
    share = sum(target[k].numel() for k in keys if k in loaded) / sum(
        target[k].numel() for k in keys
    )
    missing = [k for k in keys if k not in loaded]
    check_share(LoadReport('the backbone', report.source, missing=missing, loaded_share=share))


def _require_all(report: LoadReport) -> None:
    missing = [key for key in report.missing if not why_optional(key)]
    if not missing:
        return
    shapes = [f'{key} ({report.ignored[key]})' for key in missing if key in report.ignored]
    raise ValueError(
        f'{report.source}: {report.model} cannot be evaluated with it, {len(missing)} of its '
        f'parameters would be random: {shorten(shapes or missing)}; train it first, or take a '
        'checkpoint and a config that fit'
    )


def _evaluates(runner: Runner) -> bool:
    """Whether the runner tests or validates and does not train."""
    built = {
        kind: isinstance(getattr(runner, f'_{kind}_loop', None), BaseLoop)
        for kind in ('train', 'val', 'test')
    }
    return (built['val'] or built['test']) and not built['train']
