"""Modules that read ``init_cfg=dict(type='Pretrained')`` safely and refuse what does not fit."""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from .architecture import take_prefix
from .io import read_checkpoint
from .layouts import remap
from .mismatch import explain_mismatch
from .report import LoadReport, find_reason, shorten
from .resize import resize_on_load, resize_positions

MIN_LOADED_SHARE = 0.99

# Parameters that a checkpoint may lack, or have where the model has none, with the reason why they
# are left out then. They start anew, at values with which the model is what it is without them.
_OPTIONAL = {
    r'(.+\.)?acceleration\..+': 'acceleration that the model does not have',
    r'(.+\.)?rel_pos\.(table|table_h|table_w)': (
        'relative position of a kind that the model does not have'
    ),
}
_LEVEL = re.compile(r'(laterals|splits|blocks|outputs)\.p\d+\.')


class PretrainedModule(BaseModule):
    """Base of backbones and necks: ``Pretrained`` takes files of the authors and ours, at any grid.

    ``init_cfg=dict(type='Pretrained', checkpoint=PATH)`` loads the part of the file under
    ``checkpoint_prefix``; give ``prefix`` for another one, e.g. ``'teacher.module.'``. Other
    initialisers of mmengine work as ever.

    Raises:
        ValueError: ``init_cfg`` is of another form.
    """

    checkpoint_prefix = ''

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        _split(init_cfg)
        super().__init__(init_cfg=init_cfg)
        self.register_load_state_dict_pre_hook(resize_on_load)

    def init_weights(self) -> None:
        """Run the initialisers of ``init_cfg``, those that load a checkpoint last.

        Raises:
            FileNotFoundError: A checkpoint is not there.
            ValueError: A checkpoint cannot be read or does not fit; see :func:`load_pretrained`.
        """
        if self.is_init:
            super().init_weights()  # says so in the log
            return
        init_cfg = self.init_cfg
        self.init_cfg, pretrained = _split(init_cfg)
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        for arguments in pretrained:
            report = load_pretrained(self, **arguments)
            if hasattr(self, '_params_init_info'):  # there while a parent initialises its children
                update_init_info(self, init_info=f'PretrainedInit: load from {report.source}')


def _split(init_cfg: Any) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]]]:
    """Initialisers of mmengine, and arguments of :func:`load_pretrained`, in an ``init_cfg``."""
    configs = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
    if not isinstance(configs, (list, tuple)) or not all(
        isinstance(config, Mapping) and 'type' in config for config in configs
    ):
        raise ValueError(
            "`init_cfg` must be a dict with a `type`, such as dict(type='Pretrained', "
            f'checkpoint=PATH), or a list of them, but got {init_cfg!r}'
        )
    pretrained = [config for config in configs if config['type'] in ('Pretrained', PretrainedInit)]
    others = [config for config in configs if config not in pretrained]
    return others, [_parse(config) for config in pretrained]


def _parse(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`load_pretrained` from an initialiser of type 'Pretrained'."""
    arguments = {key: value for key, value in config.items() if key != 'type'}
    unknown = sorted(set(arguments) - {'checkpoint', 'prefix'})
    if unknown or 'checkpoint' not in arguments:
        raise ValueError(
            "`init_cfg` of type 'Pretrained' takes `checkpoint` and `prefix`, "
            f'but got {sorted(arguments)}'
        )
    return arguments


def load_pretrained(module: nn.Module, checkpoint: str, prefix: str | None = None) -> LoadReport:
    """Load a part of a checkpoint into a module and log the report.

    Args:
        module: A backbone or neck, or any other module.
        checkpoint: A local file of the authors' or of our layout.
        prefix: What precedes the module's names in our layout; ``None`` for the module's
            ``checkpoint_prefix``, or none if the file holds that module alone.

    Returns:
        What was loaded, and what not.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: It cannot be read safely, has names that nothing explains, is of another
            architecture, or has less than 99 % of the module's values.
    """
    tensors, remapped = remap(read_checkpoint(checkpoint, float32=True))
    remapped.raise_if_unexplained(checkpoint)
    part = getattr(module, 'checkpoint_prefix', '')
    prefix = _choose_prefix(tensors, prefix, part)
    state = take_prefix(tensors, prefix)
    target = module.state_dict()
    name = type(module).__name__

    report = LoadReport(name, f'{checkpoint}' + (f' (`{prefix}*`)' if prefix else ''))
    report.ignored.update(remapped.dropped)
    report.ignored.update(
        {
            key: f'part `{key.split(".")[0]}` of the file'
            for key in tensors
            if not key.startswith(prefix)
        }
    )
    if not state.keys() & target.keys():
        raise ValueError(_nothing_fits(checkpoint, tensors, prefix, name))
    if part in ('backbone.', 'neck.'):
        mismatch = explain_mismatch(part[:-1], state, target, name)
        if mismatch:
            raise ValueError(f'{checkpoint}: the checkpoint {mismatch}')

    report.copied = copy_shared_table(state, target)
    report.resized = resize_positions(module, state)
    _sort_names(state, target, report)
    wrong = [key for key in report.loaded if state[key].shape != target[key].shape]
    if wrong:
        shapes = [
            f'{key} {tuple(state[key].shape)} instead of {tuple(target[key].shape)}'
            for key in wrong
        ]
        raise ValueError(f'{checkpoint}: the checkpoint does not fit {name}: {shorten(shapes)}')
    check_share(report)

    module.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    print_log(
        str(report),
        'current',
        logging.WARNING if report.missing or report.unexpected else logging.INFO,
    )
    return report


def copy_shared_table(
    state: dict[str, Tensor], target: Mapping[str, Tensor], prefix: str = ''
) -> dict[str, int]:
    """Give each block a copy of a shared relative position table, if the model wants that.

    Args:
        state: State dict of the checkpoint, changed in place.
        target: State dict of the model.
        prefix: What precedes the backbone's names in both.

    Returns:
        Name of the shared table -> number of copies.
    """
    shared = f'{prefix}rel_pos.table'
    pattern = re.compile(re.escape(prefix) + r'stages\.2\.\d+\.attn\.rel_pos\.table')
    names = [name for name in target if pattern.fullmatch(name) and name not in state]
    if shared not in state or shared in target or not names:
        return {}
    table = state.pop(shared)
    state.update(dict.fromkeys(names, table))
    return {shared: len(names)}


def why_optional(name: str) -> str | None:
    """Why a tensor of a checkpoint may be left out that its model does not have.

    A model may have such a parameter without the checkpoint, too.

    Returns:
        The reason, for the report; ``None`` for parameters that must be on both sides.
    """
    return find_reason(name, _OPTIONAL)


def _choose_prefix(tensors: Mapping[str, Tensor], prefix: str | None, part: str) -> str:
    if prefix is None:
        return part if any(key.startswith(part) for key in tensors) else ''
    return f'{prefix}.' if prefix and not prefix.endswith('.') else prefix


def _nothing_fits(checkpoint: str, tensors: Mapping[str, Tensor], prefix: str, name: str) -> str:
    parts = Counter(key.split('.')[0] for key in tensors)
    listed = shorten([f'{part} ({count})' for part, count in parts.most_common()], 6)
    under = f'under `{prefix}*` ' if prefix else ''
    return (
        f'{checkpoint}: no tensor {under}fits {name}; the file holds {listed}: set `prefix` '
        'of `init_cfg` to the right part, or take a checkpoint that has it'
    )


def _sort_names(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor], report: LoadReport
) -> None:
    """Sort the names of checkpoint and model into ``report``."""
    levels = {_level(key) for key in target}
    for key in state:
        if key in target:
            report.loaded.append(key)
        elif reason := why_optional(key):
            report.ignored[key] = reason
        elif _LEVEL.match(key) and _level(key) not in levels:
            report.ignored[key] = 'pyramid level that no `out_strides` needs'
        else:
            report.unexpected.append(key)
    report.missing = [key for key in target if key not in state]
    values = {
        key: tensor.numel()
        for key, tensor in target.items()
        if key in state or not why_optional(key)
    }
    report.loaded_share = sum(values[key] for key in report.loaded) / max(sum(values.values()), 1)


def _level(key: str) -> str:
    """Step and level of a parameter of the pyramid, e.g. ``splits.p8``."""
    return '.'.join(key.split('.')[:2])


def check_share(report: LoadReport) -> None:
    """Refuse a load of less than 99 % of the values of a module."""
    if report.loaded_share < MIN_LOADED_SHARE:
        raise ValueError(
            f'{report.source}: holds only {report.loaded_share:.1%} of the values of '
            f'{report.model}, at least {MIN_LOADED_SHARE:.0%} are needed; '
            f'missing: {shorten(report.missing) or "nothing"}; '
            f'not in the model: {shorten(report.unexpected) or "nothing"}'
        )
