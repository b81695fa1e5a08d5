"""Between the parameter names and tensors of the authors' released files and ours, both ways."""

import functools
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from itpn_mm.layers.position import NUM_CLS_ROWS, TokenGrid

from .architecture import State, count_entries, square_window
from .maskdino import HEAD_PARTS, READ_ONLY, from_maskdino, head_part, is_maskdino
from .report import RemapReport, find_reason
from .rules import (
    AUTHORS_ONLY,
    OURS_ONLY,
    Dialect,
    Rule,
    compile_template,
    fill_template,
    rules_of,
)

# A merge gives the authors' files away, with the wrappers around them: DDP, a MIM encoder, an mmdet
# or mmseg model.
_AUTHORS_KEY = re.compile(
    r'(?P<wrapper>((module|encoder|backbone)\.)*)blocks\.\d+\.reduction\.weight'
)
_OUR_KEY = re.compile(
    r'(.+\.)?(merges\.0\.reduction\.weight|splits\.p\d+\.expand\.weight)|'
    rf'({"|".join(HEAD_PARTS)})\.pixel_decoder\.level_embed'
)
_HEADS = ('rpn_head.', 'roi_head.', 'decode_head.', 'auxiliary_head.')


def remap(state: State, to: str = 'ours') -> tuple[dict[str, Tensor], RemapReport]:
    """Bring a state dict into our layout, or into the authors'.

    A released MaskDINO is recognised, too; see :func:`itpn_mm.checkpoint.maskdino.from_maskdino`.
    Most tensors are taken as they are; 1 x 1 convolutions are reshaped, and tensors that the
    authors hold apart are joined (or taken apart again). Both directions are exact, bit for bit.

    Args:
        state: State dict in the authors' layout (with or without the prefixes that DDP, mmdet and
            mmseg add), in ours, or any other. The latter two only lose a leading ``module.`` that
            all names share.
        to: ``'ours'``, or ``'authors'``: what is in our layout gets the authors' names, and the
            indices of relative positions that their models save.

    Returns:
        The new state dict and what was done with each name.

    Raises:
        ValueError: A file of the authors has not exactly two merges, two names become one, one of
            several tensors that make one is missing, ``to`` is something else, or a MaskDINO is to
            get the authors' names.
    """
    if to not in ('ours', 'authors'):
        raise ValueError(f"`to` must be 'ours' or 'authors', but got {to!r}")
    match = next(filter(None, map(_AUTHORS_KEY.fullmatch, state)), None)
    if match is not None:
        state, report = _from_authors(state, match['wrapper'])
        return (state, report) if to == 'ours' else (_to_authors(state)[0], report)
    ours = any(map(_OUR_KEY.fullmatch, state))
    wrapper = 'module.' if state and all(name.startswith('module.') for name in state) else ''
    renamed = {name: name.removeprefix(wrapper) for name in state}
    state = {renamed[name]: tensor for name, tensor in state.items()}
    maskdino = is_maskdino(state)
    if to == 'authors' and (maskdino or head_part(state)):
        raise ValueError(READ_ONLY)
    if maskdino:
        return from_maskdino(state)
    if ours and to == 'authors':
        return _to_authors(state)
    return state, RemapReport('itpn_mm' if ours else 'unknown', renamed)


def _from_authors(state: State, wrapper: str) -> tuple[dict[str, Tensor], RemapReport]:
    bare = {name: name.removeprefix(wrapper).removeprefix('module.') for name in state}
    places = _block_places(bare.values())
    entries = {place: f'blocks.{index}' for index, place in places.items()}
    find = _Finder(_dialect_of_authors({bare[name]: tensor for name, tensor in state.items()}))
    report = RemapReport('authors')
    found: dict[str, tuple[Rule, dict[str, str], list[Tensor | None]]] = {}
    for name, tensor in state.items():
        placed = re.sub(r'^blocks\.(\d+)', lambda m: places[int(m[1])], bare[name])
        if reason := find_reason(placed, AUTHORS_ONLY):
            report.dropped[name] = reason
            continue
        rule, part, fields = find.by_authors(placed)
        if rule is None:
            report.unexplained.append(name)
            continue
        target = report.renamed[name] = fill_template(rule.ours, fields)
        _, _, parts = found.setdefault(target, (rule, fields, [None] * len(rule.authors)))
        if parts[part] is not None:
            raise ValueError(
                f'two names of the checkpoint become `{target}`; one of them is `{name}`'
            )
        parts[part] = tensor
    out = {}
    for target, (rule, fields, parts) in found.items():
        for template, tensor in zip(rule.authors, parts, strict=True):
            if tensor is None:
                missing = _replace_place(fill_template(template, fields), entries)
                raise ValueError(f'the checkpoint lacks `{missing}`, a part of `{target}`')
        try:
            out[target] = rule.change.join(parts)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f'`{target}` cannot be made of the checkpoint: {error}') from error
    return out, report


def _to_authors(state: State) -> tuple[dict[str, Tensor], RemapReport]:
    state = with_parts(state)
    depths = [count_entries(state, rf'backbone\.stages\.{stage}') for stage in range(3)]
    entries, index = {}, 0
    for stage, depth in enumerate(depths):
        for i in range(depth):
            entries[f'stages.{stage}.{i}'] = f'blocks.{index + i}'
        index += depth
        if stage < 2:
            entries[f'merges.{stage}'] = f'blocks.{index}'
            index += 1
    # beside heads of mmdet and mmseg the authors' model is called `backbone`
    wrapper = 'backbone.' if any(name.startswith(_HEADS) for name in state) else ''
    dialect = _dialect_of_ours(state)
    find = _Finder(dialect)
    report, out = RemapReport('itpn_mm'), {}
    for name, tensor in state.items():
        if reason := find_reason(name, OURS_ONLY):
            report.dropped[name] = reason
            continue
        rule, _, fields = find.by_ours(name)
        if rule is None:
            report.unexplained.append(name)
            continue
        names = [_replace_place(fill_template(t, fields), entries) for t in rule.authors]
        names = [n if n.startswith(_HEADS) else f'{wrapper}{n}' for n in names]
        out.update(zip(names, rule.change.split(tensor, len(names)), strict=True))
        report.renamed[name] = ', '.join(names)
    created = {f'{wrapper}{k}': v for k, v in _position_indices(state, entries, dialect).items()}
    report.created = list(created)
    return out | created, report


def with_parts(state: State) -> dict[str, Tensor]:
    """Put the name of the part before the names of a backbone or pyramid that was saved alone."""
    for part, key in (('backbone.', 'patch_embed.proj.weight'), ('neck.', 'splits.p8.norm.weight')):
        if key in state:
            return {f'{part}{name}': tensor for name, tensor in state.items()}
    return dict(state)


class _Finder:
    """Finds the rule for a name of either side."""

    def __init__(self, dialect: Dialect) -> None:
        self.authors, self.ours = _compile(dialect)

    def by_authors(self, name: str) -> tuple[Rule | None, int, dict[str, str]]:
        return self._first(self.authors, name)

    def by_ours(self, name: str) -> tuple[Rule | None, int, dict[str, str]]:
        return self._first(self.ours, name)

    @staticmethod
    def _first(
        patterns: list[tuple[re.Pattern, Rule, int]], name: str
    ) -> tuple[Rule | None, int, dict[str, str]]:
        for pattern, rule, part in patterns:
            if match := pattern.fullmatch(name):
                return rule, part, match.groupdict()
        return None, 0, {}


@functools.cache
def _compile(dialect: Dialect) -> tuple[list, list]:
    rules = rules_of(dialect)
    return (
        [(compile_template(t), rule, i) for rule in rules for i, t in enumerate(rule.authors)],
        [(compile_template(rule.ours), rule, 0) for rule in rules],
    )


def _replace_place(name: str, entries: Mapping[str, str]) -> str:
    """``stages.<stage>.<index>`` and ``merges.<index>`` -> ``blocks.<index>``."""
    return re.sub(r'^(stages\.\d+|merges)\.\d+', lambda m: entries[m[0]], name)


def _dialect_of_authors(state: State) -> Dialect:
    def has(pattern: str) -> bool:
        return any(map(re.compile(pattern).fullmatch, state))

    merges = [t for n, t in state.items() if re.fullmatch(r'blocks\.\d+\.reduction\.weight', n)]
    fast = any(tensor.ndim == 4 for tensor in merges)
    if has(r'(lm_head|lm_cls_head|cls_pt_layers)\..+'):
        objective = 'clip'
    elif has(r'mask_token|decoder_.+'):
        objective = 'clip' if fast else 'pixel'  # nobody released a Fast-iTPN of pixels
    else:
        objective = None
    if not fast:
        return Dialect(objective=objective)
    return Dialect(
        fast=True,
        fused_qkv=not has(r'blocks\.\d+\.attn\.q_proj\.weight'),
        swiglu=has(r'blocks\.\d+\.mlp\.w1\.weight'),
        objective=objective,
    )


def _dialect_of_ours(state: State) -> Dialect:
    if any(name.startswith(('decoder.mask_token', 'decoder.blocks.')) for name in state):
        objective = 'pixel'
    elif any(name.startswith(('mask_token', 'decoder.', 'aux_head.')) for name in state):
        objective = 'clip'
    else:
        objective = None
    backbone = 'backbone.patch_embed.proj.weight' in state
    if f'{"backbone.merges.0.reduction" if backbone else "neck.laterals.p8"}.bias' not in state:
        return Dialect(objective=objective)
    mlp = 'backbone.stages.2.0.mlp'
    fc1, fc2 = (state.get(f'{mlp}.{fc}.weight') for fc in ('fc1', 'fc2'))
    return Dialect(
        fast=True,
        fused_qkv=f'{mlp}.norm.weight' not in state,
        swiglu=fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[1],
        objective=objective,
    )


def _block_places(names: Iterable[str]) -> dict[int, str]:
    """``stages.<stage>.<index>`` or ``merges.<index>`` for each index of the list ``blocks``."""
    found = [
        m for m in (re.match(r'blocks\.(\d+)\.(reduction\.weight)?', name) for name in names) if m
    ]
    merges = sorted(int(m[1]) for m in found if m[2])
    if len(merges) != 2:
        raise ValueError(
            f'`blocks` of an iTPN checkpoint must hold 2 merges, but there are '
            f'{len(merges)}: {merges}'
        )
    places = {}
    for index in {int(m[1]) for m in found}:
        stage = sum(merge < index for merge in merges)  # merges before this entry
        start = merges[stage - 1] + 1 if stage else 0
        places[index] = f'merges.{stage}' if index in merges else f'stages.{stage}.{index - start}'
    return places


def _position_indices(
    state: State, entries: Mapping[str, str], dialect: Dialect
) -> dict[str, Tensor]:
    """The buffers that the authors' models with relative positions save.

    They can be computed for square grids, which the tables of the release have; for others they
    are left out, and the authors' code, which loads without strictness, has its own.
    """
    out = {}
    for name, table in state.items():
        match = re.fullmatch(
            r'backbone\.((?P<block>stages\.2\.\d+\.attn)\.)?rel_pos\.(?P<leaf>table|table_h)', name
        )
        if not match:
            continue
        num_extra = NUM_CLS_ROWS if 'backbone.cls_token' in state else 0
        if not dialect.fast:
            rows = table.shape[0] if match['leaf'] == 'table' else table.shape[0] ** 2
            index = _joint_index(rows, 0)
            if index is not None:
                return {'relative_position_index': index}
        elif match['leaf'] == 'table_h':
            other = state['backbone.rel_pos.table_w']
            names = ('high', 'width')
            indices = _decoupled_indices(table.shape[0], other.shape[0], num_extra)
            out |= {
                f'rel_pos_bias.relative_position_{n}_index': index
                for n, index in zip(names, indices, strict=True)
            }
        elif (index := _joint_index(table.shape[0], num_extra)) is not None:
            block = match['block']
            owner = _replace_place(block, entries) if block else 'rel_pos_bias'
            out[f'{owner}.relative_position_index'] = index
    return out


def _joint_index(rows: int, num_extra: int) -> Tensor | None:
    """Row of a joint table of a square grid for each (query, key); ``None`` for other grids."""
    size = square_window(rows - num_extra)
    if size is None:
        return None
    return _with_cls(TokenGrid(size, size).relative_index[0], rows, num_extra)


def _decoupled_indices(rows_h: int, rows_w: int, num_extra: int) -> tuple[Tensor, Tensor]:
    """Rows of the two one-dimensional tables for each (query, key).

    They count from query to key, unlike the joint table.
    """
    h, w = ((rows - num_extra + 1) // 2 for rows in (rows_h, rows_w))
    tokens = TokenGrid(h, w)
    return tuple(
        _with_cls(place[0][None, :] - place[0][:, None] + size - 1, rows, num_extra)
        for place, size, rows in ((tokens.rows, h, rows_h), (tokens.cols, w, rows_w))
    )


def _with_cls(index: Tensor, rows: int, num_extra: int) -> Tensor:
    """Add row and column of a class token, whose rows are the last of the table."""
    if not num_extra:
        return index
    index = torch.nn.functional.pad(index, (1, 0, 1, 0))
    index[0, :], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
    return index
