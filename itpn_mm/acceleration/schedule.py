"""How many tokens leave at which layer."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from itpn_mm.layers.arguments import is_number, is_whole

from .arguments import parse_layers

KINDS = ('every', 'first', 'layers')


class MigrationSchedule:
    """Spreads the tokens that leave a window evenly over some layers.

    Args:
        ratio: Share of the tokens of a window that leave over all layers, in [0, 1).
        schedule: Where they leave: ``dict(every=k)``, at layers 0, k, 2k, ... (1 is the paper's);
            ``dict(first=m)``, at layers 0 to m - 1; ``dict(layers=[...])``, at these.
        depth: Number of layers.

    Attributes:
        layers: Layers before which tokens leave, rising.

    Raises:
        ValueError: ``ratio`` is out of range, or a schedule is unknown, names layers that are not
            there, or takes more than half of what is left at once.
    """

    def __init__(self, ratio: float, schedule: Mapping[str, int | Sequence[int]], depth: int):
        if not is_number(ratio) or not 0 <= ratio < 1:
            raise ValueError(f'`ratio` must be a number in [0, 1), but got {ratio!r}')
        self.ratio, self.depth = ratio, depth
        self._share = Fraction(str(ratio)).as_integer_ratio()  # exact: 0.7 * 10 tokens are 7
        self.layers = _layers(schedule, depth)
        steps = len(self.layers)
        for step in range(steps):
            left = 1 - ratio * step / steps
            if ratio / steps > left / 2 + 1e-9:
                raise ValueError(
                    f'`schedule` {dict(schedule)} with `ratio` {ratio} takes {ratio / steps:.3g} '
                    f'of the tokens of a window at layer {self.layers[step]}, where {left:.3g} are '
                    'left: it would empty windows; at most half can leave at a layer, so lower '
                    '`ratio` or name more layers'
                )

    def lengths(self, areas: Sequence[int], slots: int) -> list[list[int]]:
        """Tokens of the windows in each layer: ``depth`` lists, one number for each of ``areas``.

        The same number of slots leaves every window; those that a smaller window lacks leave first,
        so it loses fewer tokens.

        Args:
            areas: Tokens of the windows at the start.
            slots: Tokens of the tallest times the widest window.
        """
        part, whole = self._share
        total = slots * part // whole
        lengths, current = [], list(areas)
        for layer in range(self.depth):
            if layer in self.layers:
                step, steps = self.layers.index(layer) + 1, len(self.layers)
                left = slots - (2 * total * step + steps) // (2 * steps)
                current = [max(min(n, left), n // 2) for n in current]
            lengths.append(current)
        return lengths


def _layers(schedule: Mapping[str, int | Sequence[int]], depth: int) -> list[int]:
    if not isinstance(schedule, Mapping) or len(schedule) != 1 or next(iter(schedule)) not in KINDS:
        raise ValueError(
            '`schedule` must be one of dict(every=k), dict(first=m) and dict(layers=[...]), '
            f'but got {schedule!r}'
        )
    (kind, value), wrong = *schedule.items(), f'`schedule` {dict(schedule)!r}'
    if kind == 'layers':
        return parse_layers(value, depth, f'{wrong}: `layers`')
    most = depth if kind == 'first' else None
    if not is_whole(value) or value < 1 or (most and value > most):
        limits = f'1 to {most}, the number of layers' if most else 'a number of at least 1'
        raise ValueError(f'{wrong}: `{kind}` must be {limits}')
    return list(range(value)) if most else list(range(0, depth, value))
