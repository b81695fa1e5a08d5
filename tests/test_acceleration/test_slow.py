"""The fast code against the slow one of tests/slow_acceleration.py, in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from itpn_mm.acceleration import trace_migration
from tests.checklist import note_difference
from tests.slow_acceleration import SlowStage3

from .models import WIDTH, FastiTPN, HiViT, accelerated, images, plain
from .strategies import options

OWN = [
    (kind, rel_pos, cls_token)
    for kind, cls_tokens in ((HiViT, (False,)), (FastiTPN, (False, True)))
    for rel_pos in kind.rel_pos_kinds
    for cls_token in cls_tokens
]
each_own = pytest.mark.parametrize(
    'own', OWN, ids=lambda own: f'{own[0].__name__}-{own[1]}-cls{own[2]:d}'
)


def backbone(own, grid, depth):
    """A backbone with one of the kinds of relative positions and class tokens ``OWN``."""
    kind, rel_pos, cls_token = own
    kwargs = dict(cls_token=True) if cls_token else {}
    return plain(kind, depth, grid, rel_pos_bias=rel_pos, **kwargs).double().eval()


@each_own
def test_the_slow_code_without_acceleration_is_the_backbone(own):
    """So that the reference itself is right where there is something to compare it with."""
    model, x = backbone(own, (4, 4), 2), images((3, 5), 2, dtype=torch.float64)
    expected = model(x)[2]
    model.acceleration = nn.Module()  # without weights; never run
    slow = stack(SlowStage3(model, window_size=2)(x), (3, 5))
    torch.testing.assert_close(slow, expected, atol=1e-9, rtol=1e-9)


def stack(results, grid):
    """Maps (B, E, h, w) of the slow code."""
    rows = [torch.stack([one.rows[i] for i in range(len(one.rows))]) for one in results]
    return torch.stack(rows).unflatten(1, grid).permute(0, 3, 1, 2)


def check_any(own, grid, batch, data):
    depth = data.draw(st.integers(1, 4))
    chosen = data.draw(options(depth, own_rel_pos=own[1] is not None, window_sizes=(2, 6)))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model = accelerated(backbone(own, (4, 4), depth), **chosen).double()
    check(model, images(grid, batch, dtype=torch.float64), grid, chosen)


@torch.no_grad()
def check(model, x, grid, chosen):
    results = SlowStage3(model, **chosen)(x)
    found, expected = model(x)[2], stack(results, grid)
    note_difference('acceleration and its slow code, float64', [found], [expected], '<= 1e-8')
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    assert model.acceleration.tokens_per_layer(*grid) == results[0].counts
    trace = {departure.layer: departure for departure in trace_migration(model, x)}
    assert trace.keys() <= results[0].departures.keys()
    for image, one in enumerate(results):
        assert one.counts == results[0].counts
        for layer, ids in one.departures.items():
            found = trace[layer].ids[image].tolist() if layer in trace else []
            assert sorted(found) == sorted(ids)
            for i, value in zip(found, trace[layer].values[image] if found else ()):
                torch.testing.assert_close(value, one.values[i], atol=1e-8, rtol=1e-8)


CASES = dict(
    own=st.sampled_from(OWN),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.integers(1, 3),
    data=st.data(),
)


@pytest.mark.checklist('equivalences')
@settings(max_examples=20, deadline=None)
@given(**CASES)
def test_fast_equals_slow(own, grid, batch, data):
    check_any(own, grid, batch, data)


@pytest.mark.checklist('equivalences')
@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(**CASES)
def test_fast_equals_slow_in_many_cases(own, grid, batch, data):
    check_any(own, grid, batch, data)


@pytest.mark.checklist('equivalences')
@each_own
def test_everything_on_with_gradients(own):
    """None goes through the selection; a token that left passes on that of its place."""
    options = dict(ratio=0.4, schedule=dict(every=1), window_size=3, global_layers=(1,))
    options.update(window_attention=True, gathering=True, rel_pos_bias=None if own[1] else 'all')
    grid = (7, 4)
    model = accelerated(backbone(own, (4, 4), 3), **options).double()
    x, weights = images(grid, 1, dtype=torch.float64), torch.randn(WIDTH, *grid)
    maps = model(x)[2], stack(SlowStage3(model, **options)(x), grid)
    torch.testing.assert_close(*maps, atol=1e-8, rtol=1e-8)
    fast, slow = (torch.autograd.grad((weights * y).sum(), list(model.parameters())) for y in maps)
    for (name, _), gradient, expected in zip(model.named_parameters(), fast, slow):
        assert gradient.any(), name
        torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-7, msg=name)
