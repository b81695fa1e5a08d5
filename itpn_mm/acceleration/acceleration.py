"""Stage 3 on fewer tokens and in windows (paper, Section 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itpn_mm.backbones.hivit import HiViT
from itpn_mm.layers import LayerScale, RelativePositionBias, TokenGrid
from itpn_mm.layers.migration import choose_leaving, restore_tokens, take_tokens
from itpn_mm.layers.windows import TokenWindows, WindowGrid

from .arguments import check_arguments, parse_layers
from .schedule import MigrationSchedule

# Windows a side for which the table of the attention to gathering tokens is made: 4096 pixels with
# windows of 16 patches. It is resampled for more.
CROSS_GRID = 16


@dataclass(frozen=True)
class Departure:
    """Tokens that leave before a layer: u' and pos of Equation 6, an entry of the store sequence.

    Args:
        layer: The layer.
        ids: Row-major grid index of each (B, r).
        values: What they were then (B, r, E).
    """

    layer: int
    ids: Tensor
    values: Tensor


class Acceleration(nn.Module):
    """Runs the attention blocks of a backbone; see :func:`TokenMigration` for what it does.

    Args:
        embed_dims: Width E of stage 3.
        num_heads: Number of heads.
        depth: Blocks of stage 3.
        ratio: See :func:`TokenMigration`, and there for all that follow.
        schedule: Where tokens leave.
        window_size: Longest side of a window.
        window_attention: Whether attention stays in windows.
        global_layers: Layers where it does not.
        gathering: Whether windows have gathering tokens.
        rel_pos_bias: Relative position bias.

    Raises:
        ValueError: An argument does not fit.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        depth: int,
        *,
        ratio: float,
        schedule: Mapping[str, int | Sequence[int]],
        window_size: int,
        window_attention: bool,
        global_layers: Sequence[int],
        gathering: bool,
        rel_pos_bias: str | None,
    ) -> None:
        super().__init__()
        self.schedule = MigrationSchedule(ratio, schedule, depth)
        check_arguments(window_size, window_attention, global_layers, gathering, rel_pos_bias)
        if global_layers:
            global_layers = parse_layers(global_layers, depth, '`global_layers`')
            if len(global_layers) == depth:
                raise ValueError(
                    f'`global_layers` {global_layers} are all layers; leave `window_attention` out'
                )
        self.window_size = window_size
        self.window_layers = tuple(
            layer for layer in range(depth) if window_attention and layer not in global_layers
        )
        self.gathering_token = self.scales = self.rel_pos = self.cross_rel_pos = None
        if gathering:
            self.gathering_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
            nn.init.trunc_normal_(self.gathering_token, std=0.02)
            # 0, so that a pre-trained model starts from plain window attention.
            self.scales = nn.ModuleDict(
                {str(layer): LayerScale(embed_dims, 0.0) for layer in self.window_layers}
            )
        if rel_pos_bias is not None:
            self.rel_pos = RelativePositionBias((window_size, window_size), num_heads)
        if rel_pos_bias == 'all':
            self.cross_rel_pos = RelativePositionBias((CROSS_GRID, CROSS_GRID), num_heads)

    @property
    def is_dense(self) -> bool:
        """Whether nothing is accelerated."""
        return self.schedule.ratio == 0 and not self.window_layers

    def extra_repr(self) -> str:
        """What the arguments were, for those that are not seen in the modules."""
        return (
            f'ratio={self.schedule.ratio}, migration_layers={self.schedule.layers}, '
            f'window_size={self.window_size}, window_layers={list(self.window_layers)}'
        )

    def forward(self, backbone: HiViT, x: Tensor, tokens: TokenGrid) -> Tensor:
        """Stage 3 with replenishing: (B, P + L, E) -> patches (B, L, E) in the order of the grid.

        Args:
            backbone: The backbone, whose blocks run.
            x: Tokens after :meth:`HiViT.add_positions`.
            tokens: The whole grid.

        Raises:
            ValueError: Only some of the patches are kept (pre-training).
        """
        if self.is_dense:
            return backbone.run_blocks(x, tokens)[:, backbone.num_prefix_tokens :]
        x, ids, departures = self.run(backbone, x, tokens)
        values, places = [x], [ids]
        for departure in departures:
            values.append(departure.values)
            places.append(departure.ids)
        return restore_tokens(values, places)

    def run(
        self, backbone: HiViT, x: Tensor, tokens: TokenGrid
    ) -> tuple[Tensor, Tensor, list[Departure]]:
        """As :meth:`forward`, but nothing is put back.

        Returns:
            The patches (B, L', E) that went through all layers, their grid indices (B or 1, L'),
            and those that left.
        """
        if tokens.keep is not None:
            raise ValueError(
                'an accelerated backbone takes whole images: acceleration is for downstream '
                'tasks; pre-train the backbone without TokenMigration'
            )
        num_prefix = backbone.num_prefix_tokens
        grid = WindowGrid(tokens.height, tokens.width, self.window_size)
        ids = grid.order(x.device)
        prefix, x = x[:, :num_prefix], take_tokens(x[:, num_prefix:], ids)
        gathering = [] if self.gathering_token is None else [self._start_gathering(x, grid)]
        x = torch.cat([*gathering, prefix, x], dim=1)

        lengths, departures = grid.areas, []
        layouts: dict[bool, TokenWindows] = {}  # of the present tokens, with and without windows
        plan = self.schedule.lengths(grid.areas, grid.slots)
        for layer, block in enumerate(backbone.stages[2]):
            if plan[layer] != lengths:
                x, ids, departure = self._migrate(layer, block, x, ids, grid, lengths, plan[layer])
                departures.append(departure)
                lengths = plan[layer]
                layouts.clear()
            in_windows = layer in self.window_layers
            if in_windows not in layouts:
                layouts[in_windows] = self._layout(in_windows, backbone, x, ids, grid, lengths)
            layout = layouts[in_windows]
            if in_windows and self.scales is not None:
                layout = layout.replace(scale=self.scales[str(layer)])
            x = backbone.run_block(block, x, layout)
        return x[:, -ids.shape[1] :], ids, departures

    def tokens_per_layer(self, height: int, width: int) -> list[int]:
        """Patches that each layer runs on, for a grid of ``height`` x ``width``."""
        grid = WindowGrid(height, width, self.window_size)
        nums = [num for num, *_ in grid.groups]
        return [
            sum(num * length for num, length in zip(nums, lengths, strict=True))
            for lengths in self.schedule.lengths(grid.areas, grid.slots)
        ]

    def _start_gathering(self, patches: Tensor, grid: WindowGrid) -> Tensor:
        """A token for each window (B, G, E): the mean of its patches, and what is learned."""
        sizes = [num * area for (num, *_), area in zip(grid.groups, grid.areas, strict=True)]
        means = [
            x.unflatten(1, (num, -1)).mean(dim=2)
            for x, (num, *_) in zip(patches.split(sizes, dim=1), grid.groups, strict=True)
        ]
        return torch.cat(means, dim=1) + self.gathering_token.to(patches.dtype)

    def _migrate(
        self,
        layer: int,
        block: nn.Module,
        x: Tensor,
        ids: Tensor,
        grid: WindowGrid,
        before: Sequence[int],
        after: Sequence[int],
    ) -> tuple[Tensor, Tensor, Departure]:
        """Take tokens away: windows of ``before`` tokens then have ``after`` (Equation 6)."""
        num_other = x.shape[1] - ids.shape[1]  # gathering and class tokens, which stay
        stay, leave = choose_rows(block.mean_keys(x[:, num_other:]), grid, before, after)
        other = torch.arange(num_other, device=x.device).expand(x.shape[0], -1)
        rows = torch.cat([other, stay + num_other], dim=1)
        ids = ids.expand(x.shape[0], -1)
        departure = Departure(layer, ids.gather(1, leave), take_tokens(x, leave + num_other))
        return take_tokens(x, rows), ids.gather(1, stay), departure

    def _layout(
        self,
        in_windows: bool,
        backbone: HiViT,
        x: Tensor,
        ids: Tensor,
        grid: WindowGrid,
        lengths: Sequence[int],
    ) -> TokenWindows:
        """Who attends to whom while the tokens are these."""
        groups = [(num, length) for (num, *_), length in zip(grid.groups, lengths, strict=True)]
        if not in_windows:
            groups = [(1, ids.shape[1])]
        elif lengths != grid.areas:
            groups = _join(groups)
        layout = TokenWindows(
            tuple(groups),
            num_prefix=backbone.num_prefix_tokens,
            num_gathering=0 if self.gathering_token is None else len(grid),
        )
        rel_pos = self.rel_pos if in_windows else None
        if rel_pos is not None:
            shape, index = (grid.size, grid.size), grid.local_index(ids.device)[ids]
        else:
            shape, index = (grid.height, grid.width), ids
            rel_pos = backbone.rel_pos
        if rel_pos is not None or backbone.stages[2][0].attn.rel_pos is not None:
            # As long as no token has left, the windows of a group are alike: one tells for all.
            alike = in_windows and lengths == grid.areas
            layout = layout.replace(grids=_grids(shape, index, groups, alike))
        if rel_pos is not None:
            layout = layout.share(x, rel_pos)
        if in_windows and self.cross_rel_pos is not None:
            layout = layout.replace(cross_bias=self._cross_bias(x, grid, layout))
        return layout

    def _cross_bias(self, x: Tensor, grid: WindowGrid, layout: TokenWindows) -> Tensor:
        """Bias (1, heads, rows of x, G) by the offset of a window from that of a query."""
        height, width = max(grid.num_rows, CROSS_GRID), max(grid.num_cols, CROSS_GRID)
        index = grid.window_order(x.device)
        index = index // grid.num_cols * width + index % grid.num_cols
        # (1, heads, G, G)
        bias = self.cross_rel_pos(x, TokenGrid(height, width, index.unsqueeze(0)))
        own, of_patches = torch.arange(len(grid), device=x.device), []
        for windows, (_, length) in zip(
            own.split([num for num, _ in layout.groups]), layout.groups, strict=True
        ):
            of_patches.append(windows.repeat_interleave(length))
        prefix = bias.new_zeros(*bias.shape[:2], layout.num_prefix, len(grid))
        return torch.cat([bias, prefix, bias.index_select(2, torch.cat(of_patches))], dim=2)


def choose_rows(
    keys: Tensor, grid: WindowGrid, before: Sequence[int], after: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Choose the patches that leave each window, :func:`choose_leaving` shape by shape.

    Args:
        keys: Keys of the patches (B, L, d) in the order of the windows.
        grid: The windows.
        before: Patches of the windows of each shape.
        after: How many of them stay.

    Returns:
        Rows of ``keys`` that stay and that leave (B, ...), window after window.
    """
    stay, leave, start = [], [], 0
    for (num, *_), length, new_length in zip(grid.groups, before, after, strict=True):
        stop = start + num * length
        firsts = torch.arange(start, stop, length, device=keys.device).unsqueeze(1)
        windows = keys[:, start:stop].unflatten(1, (num, length))
        for rows, chosen in zip(
            (stay, leave), choose_leaving(windows, length - new_length), strict=True
        ):
            rows.append((chosen + firsts).flatten(1))
        start = stop
    return torch.cat(stay, dim=1), torch.cat(leave, dim=1)


def _join(groups: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring groups of windows of one length become one batch."""
    joined: list[tuple[int, int]] = []
    for num, length in groups:
        if joined and joined[-1][1] == length:
            num += joined.pop()[0]
        joined.append((num, length))
    return joined


def _grids(
    shape: tuple[int, int], index: Tensor, groups: Sequence[tuple[int, int]], alike: bool
) -> tuple[TokenGrid, ...]:
    """Where the tokens of each group of windows lie.

    Args:
        shape: Grid that ``index`` is in.
        index: Places of all tokens (B or 1, L).
        groups: Number of windows and tokens of each.
        alike: Whether to give the first window for all of a group.
    """
    grids = []
    for part, (num, length) in zip(
        index.split([num * length for num, length in groups], dim=1), groups, strict=True
    ):
        keep = part[:, :length] if alike else part.unflatten(1, (num, length)).flatten(0, 1)
        grids.append(TokenGrid(*shape, keep))
    return tuple(grids)
