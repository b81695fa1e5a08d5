"""Arguments of `TokenMigration` for hypothesis."""

from hypothesis import strategies as st


@st.composite
def schedules(draw, depth: int) -> dict:
    """One of the schedules, for ``depth`` layers."""
    kind = draw(st.sampled_from(['every', 'first', 'layers']))
    if kind == 'every':
        return dict(every=draw(st.integers(1, depth)))
    if kind == 'first':
        return dict(first=draw(st.integers(1, depth)))
    layers = draw(st.sets(st.integers(0, depth - 1), min_size=1))
    return dict(layers=sorted(layers))


def length(schedule: dict, depth: int) -> int:
    """Number of layers of a schedule."""
    [(kind, value)] = schedule.items()
    return {'every': lambda: -(-depth // value), 'first': lambda: value}.get(
        kind, lambda: len(value)
    )()


@st.composite
def ratios(draw, schedule: dict, depth: int) -> float:
    """A ratio for which at most half of the tokens leave in the last layer of the schedule."""
    steps = length(schedule, depth)
    most = 0.95 * steps / (steps + 1)
    # Hundredths, because 0.29 * 100 is less than 29 in floating point.
    return draw(st.floats(0, most) | st.integers(0, int(100 * most)).map(lambda n: n / 100))


@st.composite
def options(
    draw, depth: int, own_rel_pos: bool = False, window_sizes: tuple[int, int] = (2, 12)
) -> dict:
    """Any valid arguments for a backbone of ``depth`` layers of stage 3."""
    schedule = draw(schedules(depth))
    chosen = dict(
        schedule=schedule,
        ratio=draw(st.just(0.0) | ratios(schedule, depth)),
        window_size=draw(st.integers(*window_sizes)),
        window_attention=draw(st.booleans()),
    )
    if chosen['window_attention']:
        layers = st.sets(st.integers(0, depth - 1), max_size=depth - 1)
        chosen['global_layers'] = tuple(sorted(draw(layers)))
        chosen['gathering'] = draw(st.booleans())
        if not own_rel_pos:
            kinds = [None, 'window', 'all'] if chosen['gathering'] else [None, 'window']
            chosen['rel_pos_bias'] = draw(st.sampled_from(kinds))
    return chosen
