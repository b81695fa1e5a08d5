"""Converting checkpoint files between the authors' layout and ours."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .io import is_half, read_checkpoint
from .layouts import remap, with_parts
from .maskdino import READ_ONLY, head_part, rename_head
from .maskdino_config import untold
from .model_config import config_text, model_config, task_of
from .report import RemapReport

PARTS = dict(all='', backbone='backbone.', pyramid='neck.')
_ACCELERATION = 'backbone.acceleration.'
FORMATS = ('pth', 'safetensors')
_LAYOUTS = dict(authors='the layout of the authors', maskdino="the layout of MaskDINO's authors")
_HOSTS = dict(panoptic_head='mmdet', decode_head='mmseg')  # whose model has this part
_TASKS = dict(
    pixel='pre-training with pixels',
    clip='pre-training with CLIP',
    classification='a classifier',
    detection='backbone and pyramid for detection',
    segmentation='backbone and pyramid for segmentation',
    parts='weights',
)


@dataclass
class Checkpoint:
    """A file in our layout.

    Args:
        source: Path of the file.
        state: Its tensors, under our names.
        report: How they came from the names in the file.
        acceleration: Arguments of the TokenMigration whose parameters were added.
    """

    source: str
    state: dict[str, Tensor]
    report: RemapReport
    acceleration: dict[str, Any] | None = None

    @property
    def released(self) -> bool:
        """Whether the file has the names of the authors of iTPN."""
        return self.report.layout == 'authors'

    def config(self, path: object | None = None) -> str:
        """The config that builds the model and loads it from ``path``, by default the source."""
        return config_text(
            self.state,
            path or self.source,
            self.released,
            self.acceleration,
            self.report.arguments,
        )

    def summary(self) -> str:
        """What the file is: layout, model, parts and types."""
        layout, head = _LAYOUTS.get(self.report.layout, 'our layout'), head_part(self.state)
        task = _TASKS[task_of(self.state, self.released)]
        lines = [f'{self.source}: {layout}, {f"MaskDINO for {_HOSTS[head]}" if head else task}']
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in self.state.items():
            parts.setdefault(name.split('.')[0], []).append(tensor)
        for part, tensors in parts.items():
            values = sum(tensor.numel() for tensor in tensors)
            lines.append(f'  {part}: {len(tensors)} tensors, {values:,} values')
        types = Counter(str(t.dtype).removeprefix('torch.') for t in self.state.values())
        lines.append(f'  types: {", ".join(f"{kind} ({n})" for kind, n in types.most_common())}')
        if any(name.startswith(_ACCELERATION) for name in self.state):
            lines.append(
                '  accelerated; a file does not tell `ratio` and `schedule` of TokenMigration, and '
                '`window_size` only with `rel_pos_bias`'
            )
        if head and (points := untold(self.state, head, self.report.layout == 'maskdino')):
            lines.append(f'  a file does not tell {points}')
        return '\n'.join(lines)


def open_checkpoint(
    source: str | Path, *, trust: bool = False, ema: bool = False, host: str | None = None
) -> Checkpoint:
    """Read a file of the authors or ours.

    Args:
        source: A local file.
        host: ``'mmdet'`` or ``'mmseg'``, for which a MaskDINO is wanted; by default as its authors
            use it, two stages in mmdet and one in mmseg.
        trust: See :func:`itpn_mm.checkpoint.read_checkpoint`.
        ema: See :func:`itpn_mm.checkpoint.read_checkpoint`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, is of another architecture, or ``host`` is given and it is no
            MaskDINO.
    """
    state = read_checkpoint(source, trust=trust, ema=ema)
    try:
        state, report = remap(state)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    report.raise_if_unexplained(source)
    if report.layout == 'unknown':
        raise ValueError(
            f'{source}: neither a file of the authors nor of itpn_mm; '
            f'it starts with {next(iter(state))}'
        )
    if host is not None:
        if head_part(state) is None:
            raise ValueError(f'{source}: holds no MaskDINO, and nothing else differs by package')
        part = next(part for part, name in _HOSTS.items() if name == host)
        state, report = rename_head(state, report, part)
    return Checkpoint(str(source), with_parts(state), report)


def select_part(checkpoint: Checkpoint, part: str) -> Checkpoint:
    """Keep one part of a checkpoint: ``'all'``, ``'backbone'`` or ``'pyramid'``.

    Raises:
        ValueError: The checkpoint does not have it.
    """
    if part == 'all':
        return checkpoint
    prefix = PARTS[part]
    state = {name: tensor for name, tensor in checkpoint.state.items() if name.startswith(prefix)}
    found = [name for name in state if not name.startswith(('neck.norm.', 'neck.pre_norm.'))]
    if not found:
        raise ValueError(f'{checkpoint.source}: holds no {part}')
    kept = {old: new for old, new in checkpoint.report.renamed.items() if new in state}
    others = dict.fromkeys(checkpoint.report.renamed.keys() - kept.keys(), 'not asked for')
    report = replace(checkpoint.report, renamed=kept, dropped=checkpoint.report.dropped | others)
    return Checkpoint(checkpoint.source, state, report)


def accelerate(checkpoint: Checkpoint, arguments: Mapping[str, Any]) -> Checkpoint:
    """Add the parameters of ``TokenMigration(backbone, **arguments)`` in their initial state.

    Args:
        checkpoint: What :func:`open_checkpoint` gave.
        arguments: Of TokenMigration.

    Raises:
        ValueError: The checkpoint has no backbone, is of a pre-training, or has such parameters; or
            an argument does not fit.
    """
    source, state = checkpoint.source, checkpoint.state
    if task_of(state, checkpoint.released) in ('pixel', 'clip'):
        raise ValueError(
            f'{source}: a pre-training has no acceleration; take its backbone: `--part backbone`'
        )
    if any(name.startswith(_ACCELERATION) for name in state):
        raise ValueError(f'{source}: has the parameters of an acceleration already')
    config = model_config(state, source, checkpoint.released, dict(arguments))
    config = config.get('model', config)
    if not config.get('backbone', {}).get('type', '').startswith('itpn_mm.'):
        raise ValueError(f'{source}: holds no backbone of itpn_mm')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same file each time
        built = MODELS.build(config['backbone']).state_dict()
    added = {f'backbone.{k}': v for k, v in built.items() if k.startswith('acceleration.')}
    report = replace(checkpoint.report, created=[*checkpoint.report.created, *added])
    return replace(checkpoint, state=state | added, report=report, acceleration=dict(arguments))


def convert(
    checkpoint: Checkpoint,
    target: str | Path,
    *,
    to: str = 'ours',
    file_format: str | None = None,
    half: bool = False,
) -> tuple[int, RemapReport]:
    """Write a checkpoint.

    Args:
        checkpoint: What :func:`open_checkpoint` gave.
        target: The file to write, in a folder that is made if need be; a file that is there is
            replaced once the new one is whole.
        to: Layout: ``'ours'`` or ``'authors'``.
        file_format: ``'pth'`` or ``'safetensors'``; by default the suffix decides.
        half: Write half precision; else half precision becomes float32.

    Returns:
        Number of tensors written, and what became of each name of ours (``to='authors'``), or of
        the file's.

    Raises:
        ValueError: There are names that the authors' models do not have, or it is a MaskDINO's.
        OSError: The file cannot be written, as on a full disk.
    """
    state, report = checkpoint.state, checkpoint.report
    if to == 'authors':
        if report.layout == 'maskdino' or head_part(state):
            raise ValueError(f'{checkpoint.source}: {READ_ONLY}')
        state, report = remap(state, to='authors')
        report.raise_if_unexplained(checkpoint.source)
    if half:
        state = {k: t.half() if t.is_floating_point() else t for k, t in state.items()}
    else:
        state = {k: t.float() if is_half(t) else t for k, t in state.items()}
    state = {name: _own(tensor) for name, tensor in state.items()}
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f'{target.name}.part')  # an interrupted run leaves no half a file
    try:
        if (file_format or target.suffix.removeprefix('.')) == 'safetensors':
            save_file(state, unfinished, metadata={'format': 'pt'})
        else:
            torch.save({'model' if to == 'authors' else 'state_dict': state}, unfinished)
        os.replace(unfinished, target)
    except (RuntimeError, SafetensorError) as error:  # such as a full disk
        raise OSError(f'{target}: not written ({str(error).splitlines()[0]})') from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(state), report


def _own(tensor: Tensor) -> Tensor:
    """A tensor with a storage of its own: a part of one would be written with all of it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone().contiguous()
