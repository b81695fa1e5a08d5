"""Fitting the tensors of a checkpoint to a whole model: backbone, neck and heads."""

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from itpn_mm.checkpoint import LoadReport, PretrainedModule, RemapReport, remap
from itpn_mm.checkpoint.architecture import take_prefix
from itpn_mm.checkpoint.io import read_file, take_state
from itpn_mm.checkpoint.maskdino import HEAD_PARTS, rename_head
from itpn_mm.checkpoint.mismatch import explain_mismatch
from itpn_mm.checkpoint.pretrained import check_share, copy_shared_table, why_optional
from itpn_mm.checkpoint.report import shorten
from itpn_mm.checkpoint.resize import resize_positions


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
    translated = translate(model, state, path, evaluates=True)
    if translated is not None:
        state, remapped = translated
        report.ignored.update(remapped.dropped)
    fit_state(model, state, report)
    require_all(report)
    if report.unexpected or report.ignored or report.resized:
        print_log(str(report), 'current', logging.WARNING)
    model.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    meta = checkpoint.get('meta')
    return dict(meta) if isinstance(meta, Mapping) else {}


def translate(
    model: nn.Module, state: Mapping[str, Tensor], source: str, evaluates: bool
) -> tuple[dict[str, Tensor], RemapReport] | None:
    """Bring a state dict into our layout, and a released MaskDINO's to the head of the model.

    Args:
        model: The model that is going to load it.
        state: The state dict.
        source: The checkpoint, for messages.
        evaluates: See :func:`check_arguments`.

    Returns:
        The new state dict and what was done with each name; ``None`` where neither model nor
        checkpoint has anything of ours.

    Raises:
        ValueError: The checkpoint has names that nothing explains, or needs other arguments.
    """
    try:
        state, report = remap(state)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    if report.layout != 'maskdino' and not _parts(model):
        return None
    part = _maskdino_head(model)
    if report.layout == 'maskdino' and part is not None:
        state, report = rename_head(state, report, part)
    report.raise_if_unexplained(source)
    check_arguments(model, report, source, evaluates)
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


def fit_state(model: nn.Module, state: dict[str, Tensor], report: LoadReport) -> None:
    """Fit a state dict in our layout to a model, in place, and fill in the report.

    Args:
        model: The model.
        state: State dict with the names of the model.
        report: The report.

    Raises:
        ValueError: A part is of another architecture, or nothing fits.
    """
    target, parts = model.state_dict(), _parts(model)
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


def _parts(model: nn.Module) -> dict[str, PretrainedModule]:
    """Backbone and neck of ours, by name."""
    parts = {name: getattr(model, name, None) for name in ('backbone', 'neck')}
    return {name: part for name, part in parts.items() if isinstance(part, PretrainedModule)}


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


def require_all(report: LoadReport) -> None:
    """Refuse to evaluate a model of which the checkpoint lacks parameters."""
    missing = [key for key in report.missing if not why_optional(key)]
    if not missing:
        return
    shapes = [f'{key} ({report.ignored[key]})' for key in missing if key in report.ignored]
    raise ValueError(
        f'{report.source}: {report.model} cannot be evaluated with it, {len(missing)} of its '
        f'parameters would be random: {shorten(shapes or missing)}; train it first, or take a '
        'checkpoint and a config that fit'
    )
