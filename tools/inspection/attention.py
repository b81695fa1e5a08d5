"""Attention of a layer of stage 3, computed beside the model, which never holds it.

`scaled_dot_product_attention` gives what attention makes of values, and not the probabilities. But
what it makes of the unit vectors as values are the probabilities. So they come from the code that
the model runs, whatever stands in its way: relative positions, windows, tokens that have left.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from itpn_mm.acceleration import trace_migration
from itpn_mm.backbones import HiViT
from itpn_mm.layers import Attention, TokenGrid
from itpn_mm.layers.windows import TokenWindows, WindowGrid, attend

COLUMNS = 512  # unit vectors at a time, for the sake of memory


class AttentionMaps(NamedTuple):
    """Attention of a layer from some patches to all of them.

    Args:
        maps: Probabilities (queries, heads, h, w); NaN for a patch that has left before, for all
            of them if it is the query.
        windows: First rows and columns of the windows, and the ends of the grid; None where
            attention is global.
        gathering: Probabilities (queries, heads, rows, columns) of the windows' gathering tokens;
            None without these.
    """

    maps: Tensor
    windows: tuple[list[int], list[int]] | None
    gathering: Tensor | None


@torch.no_grad()
def attention_probabilities(
    module: Attention,
    x: Tensor,
    tokens: TokenGrid | TokenWindows | None = None,
    bias: Tensor | None = None,
    rows: Tensor | slice = slice(None),
) -> Tensor:
    """Probabilities of an attention for what it takes: (B, L, C) -> (B, heads, rows, L).

    Args:
        module: The attention.
        x: See :meth:`Attention.forward`.
        tokens: See there. In windows, what a query does not see has 0; gathering tokens, to which
            it attends a second time, are not counted, see :func:`gathering_probabilities`.
        bias: See there.
        rows: Tokens whose attention is wanted.
    """
    q, k = _queries_and_keys(module, x)
    b, length, heads = q.shape[:3]
    in_windows = isinstance(tokens, TokenWindows)
    if in_windows:
        tokens = tokens.replace(scale=None)
    else:
        if module.rel_pos is not None:
            bias = module.rel_pos(q.transpose(1, 2), tokens)
        q, bias = q[:, rows], None if bias is None else bias[:, :, rows]
    parts = []
    for unit in torch.eye(length, dtype=q.dtype).split(COLUMNS, dim=1):
        values = unit.view(1, length, 1, -1).expand(b, -1, heads, -1)
        if in_windows:
            out = tokens.attend(q, k, values, module.rel_pos).unflatten(2, (heads, -1))
            parts.append(out[:, rows])
        else:
            parts.append(attend(q, k, values, bias))
    return torch.cat(parts, dim=3).transpose(1, 2)


@torch.no_grad()
def gathering_probabilities(
    module: Attention, x: Tensor, tokens: TokenWindows, rows: Tensor | slice = slice(None)
) -> Tensor:
    """Probabilities of the attention to the gathering tokens: (B, L, C) -> (B, heads, rows, G)."""
    q, k = _queries_and_keys(module, x)
    unit = torch.eye(tokens.num_gathering, dtype=q.dtype)
    values = unit.unsqueeze(1).expand(q.shape[0], -1, module.num_heads, -1)
    out = attend(q, k[:, : tokens.num_gathering], values, tokens.cross_bias)
    return out[:, rows].transpose(1, 2)


def _queries_and_keys(module: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, heads, d) each."""
    return module.qkv(x).view(*x.shape[:2], 3, module.num_heads, -1).unbind(2)[:2]


@torch.no_grad()
def look(
    backbone: HiViT, images: Tensor, layer: int, queries: list[int]
) -> tuple[tuple[Tensor, ...], AttentionMaps]:
    """Run a backbone on one image (1, 3, H, W), and see how some patches attend.

    Args:
        backbone: The backbone, accelerated or not.
        images: The image, prepared.
        layer: Layer of stage 3, from 0.
        queries: Grid indices of the patches, row-major.

    Returns:
        Maps of the three stages (1, C, H / s, W / s), and the attention.
    """
    ids = patches_of_layer(backbone, images, layer)
    module, calls = backbone.stages[2][layer].attn, []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        stages = backbone.forward_stages(images)
    finally:
        handle.remove()
    [(x, tokens, bias)] = calls
    places = {patch: place for place, patch in enumerate(ids.tolist())}
    present = [i for i, query in enumerate(queries) if query in places]
    num_other = x.shape[1] - len(ids)  # gathering and class tokens, which stand before
    rows = torch.tensor([places[queries[i]] for i in present], dtype=torch.long) + num_other

    grid = grid_of(backbone, images)
    shape = (len(queries), module.num_heads)
    found = attention_probabilities(module, x, tokens, bias, rows)[0, :, :, num_other:]
    of_present = found.new_full((len(present), module.num_heads, grid[0] * grid[1]), torch.nan)
    of_present[:, :, ids] = found.transpose(0, 1)
    maps = found.new_full((*shape, grid[0] * grid[1]), torch.nan)
    maps[present] = of_present

    windows = gathering = None
    if backbone.acceleration is not None and layer in backbone.acceleration.window_layers:
        cut = WindowGrid(*grid, backbone.acceleration.window_size)
        windows = tuple(window_edges(length, cut.size) for length in grid)
        if tokens.scale is not None:
            gathering = found.new_full((*shape, len(cut)), torch.nan)
            shares = gathering_probabilities(module, x, tokens, rows)[0].transpose(0, 1)
            gathering[present] = shares[:, :, cut.window_order().argsort()]
            gathering = gathering.unflatten(2, (cut.num_rows, cut.num_cols))
    maps = AttentionMaps(maps.unflatten(2, grid), windows, gathering)
    return tuple(stage.permute(0, 3, 1, 2).contiguous() for stage in stages), maps


@torch.no_grad()
def patches_of_layer(backbone: HiViT, images: Tensor, layer: int) -> Tensor:
    """Grid index of the patches (L',) that a layer runs on, in their order, for one image."""
    height, width = grid_of(backbone, images)
    acceleration = backbone.acceleration
    if acceleration is None or acceleration.is_dense:
        return torch.arange(height * width)
    order = WindowGrid(height, width, acceleration.window_size).order()[0]
    gone = [d.ids[0] for d in trace_migration(backbone, images) if d.layer <= layer]
    return order[~torch.isin(order, torch.cat(gone))] if gone else order


def grid_of(backbone: HiViT, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches that a backbone sees of images (B, 3, H, W)."""
    return tuple(-(-side // backbone.patch_size) for side in images.shape[2:])


def window_edges(length: int, size: int) -> list[int]:
    """Where windows of at most `size` tokens begin along a side, and its end."""
    count = -(-length // size)
    return [i * length // count for i in range(count + 1)]
