"""Stage 3 with token migration, windows and gathering tokens: one image, one token at a time.

Written from the description of the method alone, to check the fast code; nothing of it is imported
here. It shares the backbone's layers, everything before stage 3, and the resampling of position
tables. A token is a plain vector (E,) with a name: ``('cls',)``, ``('patch', i)`` with the index i
of the patch (row-major), or ``('gather', i, j)`` of the window in row i and column j of windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import floor

import torch
from torch import Tensor

from itpn_mm.layers import (
    DecomposedRelativePosition,
    DecoupledRelativePositionBias,
    RelativePositionBias,
)
from itpn_mm.layers.position import resize_decoupled_table, resize_rel_pos_1d, resize_rel_pos_table

CLS_TO_PATCH, PATCH_TO_CLS, CLS_TO_CLS = -3, -2, -1  # rows of a table with a class token
CROSS_WINDOWS = 16  # windows along a side for which the table of gathering tokens is made


@dataclass
class SlowImage:
    """What became of one image."""

    rows: dict[int, Tensor] = field(default_factory=dict)  # patch -> output of stage 3
    departures: dict[int, list[int]] = field(default_factory=dict)  # layer -> patches that left
    values: dict[int, Tensor] = field(default_factory=dict)  # patch that left -> its value then
    counts: list[int] = field(default_factory=list)  # patches that each layer ran on
    windows: list[list[int]] = field(default_factory=list)  # patches of each window


def schedule_layers(schedule: dict, depth: int) -> list[int]:
    """Layers of a schedule."""
    [(kind, value)] = schedule.items()
    if kind == 'every':
        return [layer for layer in range(depth) if layer % value == 0]
    return list(range(value)) if kind == 'first' else sorted(value)


def cut(length: int, size: int) -> list[range]:
    """Even windows along one side."""
    number = 1
    while number * size < length:
        number += 1
    return [range(i * length // number, (i + 1) * length // number) for i in range(number)]


def tokens_left(patches: int, slots: int, ratio: float, steps: int) -> list[int]:
    """Tokens of a window of ``patches`` after each of the ``steps`` layers of a schedule."""
    leave, left = floor(Decimal(str(ratio)) * slots), [patches]  # 0.29 of 100 are 29
    for j in range(1, steps + 1):
        gone = floor(leave * j / steps + 1 / 2)  # slots that are empty by now
        left.append(max(min(patches, slots - gone), left[-1] // 2))
    return left[1:]


class SlowStage3:
    """Stage 3 of ``backbone``, a HiViT or FastiTPN with an ``acceleration`` module.

    The other arguments are those that the module was made with.
    """

    def __init__(
        self,
        backbone,
        ratio: float = 0.0,
        schedule: dict | None = None,
        window_size: int = 16,
        window_attention: bool = False,
        global_layers: Sequence[int] = (),
        gathering: bool = False,
        rel_pos_bias: str | None = None,
    ) -> None:
        self.backbone, self.weights = backbone, dict(backbone.acceleration.named_parameters())
        self.blocks = list(backbone.stages[2])
        self.ratio = ratio
        self.schedule = schedule_layers(schedule or dict(every=4), len(self.blocks))
        self.window_size = window_size
        self.windowed = [
            window_attention and layer not in global_layers for layer in range(len(self.blocks))
        ]
        self.gathering, self.rel_pos_bias = gathering, rel_pos_bias

    def __call__(self, images: Tensor) -> list[SlowImage]:
        *_, x, tokens = self.backbone.forward_stem(images)
        self.height, self.width = tokens.height, tokens.width
        x = self.backbone.add_positions(x.flatten(1, 2), tokens)
        return [self.run_image(image) for image in x]

    def run_image(self, x: Tensor) -> SlowImage:
        """All layers on the tokens (P + L, E) of one image."""
        rows, cols = cut(self.height, self.window_size), cut(self.width, self.window_size)
        slots = max(map(len, rows)) * max(map(len, cols))
        alive = {
            (i, j): [y * self.width + x for y in window_rows for x in window_cols]
            for i, window_rows in enumerate(rows)
            for j, window_cols in enumerate(cols)
        }
        self.window_of = {patch: window for window, ids in alive.items() for patch in ids}
        number_of_cls = len(x) - self.height * self.width
        values = {('cls',): x[0]} if number_of_cls else {}
        for ids in alive.values():
            values |= {('patch', i): x[number_of_cls + i] for i in ids}
        if self.gathering:
            for window, ids in alive.items():
                mean = sum(values['patch', i] for i in ids) / len(ids)
                values[('gather', *window)] = mean + self.weights['gathering_token'][0, 0]

        result = SlowImage(windows=[list(ids) for ids in alive.values()])
        quotas = {
            window: tokens_left(len(ids), slots, self.ratio, len(self.schedule))
            for window, ids in alive.items()
        }
        for layer, block in enumerate(self.blocks):
            if layer in self.schedule:
                step = self.schedule.index(layer)
                result.departures[layer] = []
                for window, ids in alive.items():
                    leaving = self.choose(block, values, ids, len(ids) - quotas[window][step])
                    result.departures[layer] += leaving
                    for i in leaving:
                        result.values[i] = values.pop(('patch', i))
                    alive[window] = [i for i in ids if i not in leaving]
            result.counts.append(sum(map(len, alive.values())))
            values = self.run_block(layer, block, values, alive)
        for ids in alive.values():
            result.rows |= {i: values['patch', i] for i in ids}
        result.rows |= result.values
        return result

    def choose(self, block, values: dict, ids: list[int], number: int) -> list[int]:
        """The ``number`` patches of A that are most alike one of B."""
        if not number:
            return []
        keys = {}
        for i in ids:
            k = self.qkv(block, values['patch', i])[1]
            keys[i] = k.mean(0)  # over heads
        a, b = ids[0::2], ids[1::2]
        similarity = {
            i: max((keys[i] @ keys[j] / keys[i].norm() / keys[j].norm()).item() for j in b)
            for i in a
        }
        return sorted(a, key=similarity.get, reverse=True)[:number]

    @staticmethod
    def qkv(block, x: Tensor) -> Tensor:
        """Query, key and value (3, heads, d) of the token (E,)."""
        return block.attn.qkv(block.norm1(x)).reshape(3, block.attn.num_heads, -1)

    def run_block(self, layer: int, block, values: dict, alive: dict) -> dict:
        """One transformer block on every token."""
        qkv = {name: self.qkv(block, x) for name, x in values.items()}
        tables, out = self.tables(layer, block), {}
        for name, x in values.items():
            window = self.window_of[name[1]] if name[0] == 'patch' else name[1:]
            windows = [window] if self.windowed[layer] and name[0] != 'cls' else alive
            seen = [('cls',)] if ('cls',) in values else []
            seen += [('patch', i) for w in windows for i in alive[w]]
            bias = [tables(name, other, qkv[name][0]) for other in seen]
            attended = self.attend(qkv, name, seen, bias)
            if self.gathering and self.windowed[layer]:
                gathered = [('gather', *w) for w in alive]
                bias = [self.cross_bias(name, other) for other in gathered]
                gamma = self.weights[f'scales.{layer}.gamma']
                attended = attended + gamma * self.attend(qkv, name, gathered, bias)
            y = x + block.ls1(block.attn.proj(attended))
            out[name] = y + block.ls2(block.mlp(block.norm2(y)))
        return out

    @staticmethod
    def attend(qkv: dict, name: tuple, seen: list[tuple], bias: list) -> Tensor:
        """Attention of one token to those it sees, head by head: (E,)."""
        q, heads = qkv[name][0], []
        for head in range(len(q)):
            logits = torch.stack(
                [
                    q[head] @ qkv[other][1, head] / q.shape[1] ** 0.5 + shift[head]
                    for other, shift in zip(seen, bias)
                ]
            )
            weights = logits.exp() / logits.exp().sum()
            heads.append(sum(w * qkv[other][2, head] for w, other in zip(weights, seen)))
        return torch.cat(heads)

    def place(self, name: tuple) -> tuple[int, int]:
        """Row and column of a patch."""
        return divmod(name[1], self.width)

    def tables(self, layer: int, block):
        """The function that gives the biases (heads,) of the attention of one token to another."""
        own = block.attn.rel_pos or self.backbone.rel_pos
        nothing = torch.zeros(block.attn.num_heads, dtype=torch.float64)
        h, w = self.height, self.width
        if isinstance(own, RelativePositionBias):
            table = resize_rel_pos_table(
                own.table, own.window, (h, w), own.resize_mode, own.num_extra
            )
        elif isinstance(own, DecoupledRelativePositionBias):
            table_h = resize_decoupled_table(own.table_h, h, own.num_extra)
            table_w = resize_decoupled_table(own.table_w, w, own.num_extra)
        elif isinstance(own, DecomposedRelativePosition):
            table_h = resize_rel_pos_1d(own.table_h, h)
            table_w = resize_rel_pos_1d(own.table_w, w)

        def bias(query: tuple, key: tuple, q: Tensor) -> Tensor:
            kinds = query[0], key[0]
            if 'gather' in kinds:
                return nothing
            if 'cls' in kinds:
                row = {
                    ('cls', 'patch'): CLS_TO_PATCH,
                    ('patch', 'cls'): PATCH_TO_CLS,
                    ('cls', 'cls'): CLS_TO_CLS,
                }[kinds]
                if isinstance(own, RelativePositionBias):
                    return table[row]
                if isinstance(own, DecoupledRelativePositionBias):
                    return table_h[row] + table_w[row]
                return nothing
            (row, col), (key_row, key_col) = self.place(query), self.place(key)
            dy, dx = row - key_row, col - key_col
            if isinstance(own, RelativePositionBias):
                return table[(dy + h - 1) * (2 * w - 1) + dx + w - 1]
            if isinstance(own, DecoupledRelativePositionBias):  # counts from query to key
                return table_h[-dy + h - 1] + table_w[-dx + w - 1]
            if isinstance(own, DecomposedRelativePosition):
                return q @ table_h[dy + h - 1] + q @ table_w[dx + w - 1]
            if self.rel_pos_bias and self.windowed[layer]:
                size = self.window_size
                index = (dy + size - 1) * (2 * size - 1) + dx + size - 1
                return self.weights['rel_pos.table'][index]
            return nothing

        return bias

    def cross_bias(self, query: tuple, key: tuple) -> Tensor:
        """Biases (heads,) of the attention of a token to a gathering token."""
        num_heads = self.blocks[0].attn.num_heads
        if self.rel_pos_bias != 'all' or query[0] == 'cls':
            return torch.zeros(num_heads, dtype=torch.float64)
        row, col = self.window_of[query[1]] if query[0] == 'patch' else query[1:]
        dy, dx = row - key[1], col - key[2]
        side = 2 * CROSS_WINDOWS - 1
        index = (dy + CROSS_WINDOWS - 1) * side + dx + CROSS_WINDOWS - 1
        return self.weights['cross_rel_pos.table'][index]
