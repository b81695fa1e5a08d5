"""What mmengine's `LocalVisBackend` logged in `vis_data/scalars.json`, of a run in one piece.

A line is a JSON object. That of training iterations has `iter`, and `epoch` if the run counts
epochs; that of a validation has neither, and `step` is its epoch or its iteration, by the settings
of the run.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = 'vis_data/scalars.json'
PLACES = ('iter', 'epoch', 'step')  # keys that say where, not what
TIMES = ('time', 'data_time')  # trainings and validations log both; a training's are taken


@dataclass
class Curve:
    """Values of a key, and the iterations that they belong to.

    Args:
        is_score: Whether they come from validations.
        iterations: Rising.
        values: As many.
    """

    is_score: bool
    iterations: list[int]
    values: list[float]


@dataclass
class Run:
    """A training, joined from the folders of its parts.

    Args:
        name: Of its folder.
        curves: By key.
        epoch_length: Iterations of an epoch; None if the run does not count epochs.
        folders: How many were joined.
    """

    name: str
    curves: dict[str, Curve]
    epoch_length: int | None
    folders: int

    @property
    def last(self) -> int:
        """The last iteration that was logged."""
        return max(curve.iterations[-1] for curve in self.curves.values())

    def positions(self, curve: Curve, axis: str) -> list[float]:
        """Where the values of a curve lie by `iter` or `epoch`.

        Raises:
            ValueError: The run does not count epochs.
        """
        if axis == 'iter':
            return list(curve.iterations)
        if self.epoch_length is None:
            raise ValueError(f'{self.name}: counts no epochs; plot it by `--x iter`')
        return [iteration / self.epoch_length for iteration in curve.iterations]


def find_logs(path: Path) -> list[Path]:
    """Logs of a work folder, of one run's folder in it, or a log; the oldest first.

    mmengine names the folders by time.

    Raises:
        FileNotFoundError: There is none.
    """
    if path.is_file():
        return [path]
    found = [path / FILE] if (path / FILE).is_file() else sorted(path.glob(f'*/{FILE}'))
    if not found:
        raise FileNotFoundError(
            f'{path}: no {FILE} in it or in its folders; give the work folder of a training'
        )
    return found


def read_records(path: Path) -> list[dict]:
    """Lines of a log; one that is not whole, as of a run that was killed, is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_run(path: Path) -> Run:
    """Read a run; where two of its logs have been at one iteration, the later one counts.

    Raises:
        FileNotFoundError: There is no log.
        ValueError: Its logs hold nothing.
    """
    logs = find_logs(path)
    joined: list[tuple[int, dict]] = []  # iteration and record
    length = None
    for log in logs:
        records = read_records(log)
        length = epoch_length(records) or length
        placed = place(records, length, joined[-1][0] if joined else 0)
        start = min((at for at, record in placed if 'iter' in record), default=math.inf)
        joined = [(at, record) for at, record in joined if at < start] + placed
    values: dict[str, dict[int, float]] = defaultdict(dict)
    scores = set()
    for at, record in joined:
        of_training = 'iter' in record
        for key, value in record.items():
            is_value = isinstance(value, (int, float)) and key not in PLACES
            if is_value and (of_training or key not in TIMES):
                values[key][at] = value
                scores |= set() if of_training else {key}
    if not values:
        raise ValueError(f'{path}: its logs hold no values; has it logged an iteration yet?')
    curves = {}
    for key, by_iteration in values.items():
        at, found = zip(*sorted(by_iteration.items()), strict=True)
        curves[key] = Curve(key in scores, list(at), list(found))
    return Run(path.name, curves, length, len(logs))


def epoch_length(records: Sequence[dict]) -> int | None:
    """Iterations of an epoch, which no log tells: the fewest with which the records agree."""
    shares = [r['iter'] / r['epoch'] for r in records if r.get('epoch') and 'iter' in r]
    return math.ceil(max(shares)) if shares else None


def place(records: Sequence[dict], length: int | None, at: int) -> list[tuple[int, dict]]:
    """Records with the iterations that they belong to.

    A validation belongs to its epoch's end, or to its iteration. If the run counts epochs for
    validations alone, nothing tells their lengths: it belongs to the iteration logged before.

    Args:
        records: Of a log, in its order.
        length: Iterations of an epoch.
        at: Iteration that was logged before the first one.
    """
    placed = []
    for record in records:
        step = record.get('step', 0)
        if 'iter' in record:
            at = record['iter']
            placed.append((at, record))
        elif length is not None and abs(step * length - at) < length:
            placed.append((step * length, record))
        else:
            placed.append((max(step, at), record))
    return placed


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean of the values so far, without the pull of a start at 0.

    Args:
        values: Those that are not finite are passed over, and stay as they are.
        weight: Of the past, 0 to 1 (excluded).
    """
    smoothed, total, share = [], 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total = weight * total + (1 - weight) * value
            share = weight * share + (1 - weight)
            value = total / share
        smoothed.append(value)
    return smoothed
