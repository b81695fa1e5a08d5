"""What a state dict in our layout says about its model."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from itpn_mm.layers.position import NUM_CLS_ROWS

State = Mapping[str, Tensor]

# The tensors do not tell it; it is that of every released model with layer scale.
LAYER_SCALE = 0.1


def inspect(state: State) -> dict[str, dict[str, Any] | None]:
    """Read widths, depths and options of backbone and pyramid off the tensors of a state dict.

    Args:
        state: State dict in our layout, with names ``backbone.*`` and ``neck.*`` (see
            :func:`itpn_mm.checkpoint.remap`).

    Returns:
        ``{'backbone': ..., 'neck': ...}``, each ``None`` where the state dict has no such part; for
        what is in them see :func:`inspect_backbone` and :func:`inspect_neck`.
    """
    return {
        part: reader(take_prefix(state, f'{part}.')) or None
        for part, reader in (('backbone', inspect_backbone), ('neck', inspect_neck))
    }


def take_prefix(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def inspect_backbone(state: State) -> dict[str, Any]:
    """Arguments of a HiViT or FastiTPN from its state dict; empty if it is neither.

    Returns:
        ``type``, ``embed_dims``, ``depths``, ``in_channels``, ``patch_size``, ``stem_mlp_ratio``,
        ``mlp_ratio``, ``qkv_bias``, ``patch_norm``, ``use_abs_pos_emb``, ``cls_token``,
        ``sub_norm``, ``swiglu``, ``layer_scale`` (bool), ``rel_pos_bias``, ``rel_pos_shape`` (of a
        table), ``num_heads`` (``None`` where no relative position tells), ``grid`` (of the
        positions; ``None`` if there are none, or no square) and ``acceleration`` (arguments of a
        TokenMigration as far as its parameters tell; ``None`` if there are none).
    """
    stages = [count_entries(state, rf'stages\.{i}') for i in range(3)]
    proj = state.get('patch_embed.proj.weight')
    if proj is None or not all(stages):
        return {}
    fast = 'merges.0.reduction.bias' in state
    embed_dims = 4 * proj.shape[0]
    kind, table = _relative_position(state)
    num_heads = None
    if kind is not None:
        num_heads = embed_dims // table.shape[1] if kind == 'decomposed' else table.shape[1]
    elif 'acceleration.rel_pos.table' in state:
        num_heads = state['acceleration.rel_pos.table'].shape[1]
    pos = state.get('pos_embed')
    cls_token = _has_cls(state, pos)
    block = 'stages.2.0'
    fc1, fc2 = (state.get(f'{block}.mlp.{fc}.weight') for fc in ('fc1', 'fc2'))
    known = fc1 is not None and fc2 is not None
    return dict(
        type='FastiTPN' if fast else 'HiViT',
        embed_dims=embed_dims,
        depths=tuple(stages),
        num_heads=num_heads,
        in_channels=proj.shape[1],
        patch_size=4 * proj.shape[2],
        patch_norm='patch_embed.norm.weight' in state,
        stem_mlp_ratio=_mlp_ratio(state, r'stages\.[01]\.0'),
        mlp_ratio=_mlp_ratio(state, r'stages\.2\.0'),
        sub_norm=f'{block}.mlp.norm.weight' in state,
        swiglu=fc1.shape[0] == 2 * fc2.shape[1] if known else None,
        qkv_bias=f'{block}.attn.qkv.{"q_bias" if fast else "bias"}' in state,
        use_abs_pos_emb=pos is not None,
        cls_token=cls_token,
        grid=_grid(kind, table, pos, cls_token),
        layer_scale=f'{block}.ls2.gamma' in state,
        rel_pos_bias=kind,
        rel_pos_shape=None if kind is None else tuple(table.shape),
        acceleration=_acceleration(take_prefix(state, 'acceleration.'), stages[2]),
    )


def inspect_neck(state: State) -> dict[str, Any]:
    """Arguments of a TransformerPyramidNeck from its state dict; empty if it is not one.

    Returns:
        ``out_channels``, ``mlp_ratio``, ``bias`` (``None`` if only the top level is there),
        ``in_channels`` and ``depth`` by stride, and ``levels``, the strides of the levels that are
        there.
    """
    levels = strides_of(state, r'outputs\.p(\d+)\.norm2\.weight')
    if not levels:
        return {}
    splits = strides_of(state, r'splits\.p(\d+)\.expand\.weight')
    laterals = strides_of(state, r'laterals\.p(\d+)\.weight')
    in_channels = {stride: state[f'laterals.p{stride}.weight'].shape[1] for stride in laterals}
    if splits:  # the topmost splitting reads the backbone's last map
        in_channels[2 * splits[-1]] = state[f'splits.p{splits[-1]}.norm.weight'].shape[0]
    return dict(
        out_channels=state[f'outputs.p{levels[0]}.norm2.weight'].shape[0],
        in_channels=dict(sorted(in_channels.items())),
        depth={stride: count_entries(state, rf'blocks\.p{stride}') for stride in splits},
        mlp_ratio=_mlp_ratio(state, r'outputs\.p\d+'),
        bias=any(f'splits.p{stride}.expand.bias' in state for stride in splits) if splits else None,
        levels=tuple(levels),
    )


def square_grid(length: int) -> tuple[int, int] | None:
    """Grid (h, w) of ``length`` tokens if it can be a square, else ``None``."""
    side = math.isqrt(length)
    return (side, side) if side * side == length else None


def square_window(rows: int) -> int | None:
    """Side n of the square window whose joint relative position table has so many rows.

    These are (2n - 1)^2, without those of a class token; ``None`` if no window has so many.
    """
    grid = square_grid(max(rows, 0))
    return (grid[0] + 1) // 2 if grid is not None and grid[0] % 2 else None


def count_entries(state: State, parent: str) -> int:
    """Number of entries of the module list ``parent`` (a pattern)."""
    return len({m[1] for m in map(re.compile(rf'{parent}\.(\d+)\..+').fullmatch, state) if m})


def strides_of(state: State, name: str) -> list[int]:
    """Strides that stand in the names that fit a pattern with one group for them, rising."""
    return sorted({int(m[1]) for m in map(re.compile(name).fullmatch, state) if m})


def flatten(values: list[int]) -> int | tuple[int, ...]:
    """One number if all are equal, else a tuple of them."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _mlp_ratio(state: State, block: str) -> float | None:
    """Ratio of hidden to outer width in the first block whose name matches."""
    for name, tensor in state.items():
        # not fc1, which is twice as wide in SwiGLU
        if re.fullmatch(rf'{block}\.mlp\.fc2\.weight', name):
            return tensor.shape[1] / tensor.shape[0]
    return None


def _has_cls(state: State, pos: Tensor | None) -> bool:
    """Whether there is a class token; a file may have lost it and kept its position."""
    if 'cls_token' in state or pos is None:
        return 'cls_token' in state
    return square_grid(pos.shape[1]) is None and square_grid(pos.shape[1] - 1) is not None


def _grid(
    kind: str | None, table: Tensor | None, pos: Tensor | None, cls_token: bool
) -> tuple[int, int] | None:
    """Grid of the relative position, which the authors adapt to the image size, else of ``pos``."""
    if kind is None:
        return None if pos is None else square_grid(pos.shape[1] - cls_token)
    differences = table.shape[0] - (NUM_CLS_ROWS if cls_token else 0)
    if kind in ('block', 'shared'):
        window = square_window(differences)
        return None if window is None else (window, window)
    return ((differences + 1) // 2,) * 2


def _relative_position(state: State) -> tuple[str | None, Tensor | None]:
    """Value of ``rel_pos_bias`` and one of the tables."""
    at_block = 'stages.2.0.attn.rel_pos.'
    for kind, name in (
        ('block', f'{at_block}table'),
        ('shared', 'rel_pos.table'),
        ('decomposed', f'{at_block}table_h'),
        ('decoupled', 'rel_pos.table_h'),
    ):
        if name in state:
            return kind, state[name]
    return None, None


def _acceleration(state: State, depth: int) -> dict[str, Any] | None:
    """Arguments of a TokenMigration around ``depth`` layers; ratio and schedule have no tensors."""
    if not state:
        return None
    found = dict(window_attention=True, gathering='gathering_token' in state)
    windowed = {int(name.split('.')[1]) for name in state if name.startswith('scales.')}
    if len(windowed) < depth and found['gathering']:
        found['global_layers'] = tuple(i for i in range(depth) if i not in windowed)
    if 'rel_pos.table' in state:
        found['rel_pos_bias'] = 'all' if 'cross_rel_pos.table' in state else 'window'
        if window := square_window(state['rel_pos.table'].shape[0]):
            found['window_size'] = window
    return found
