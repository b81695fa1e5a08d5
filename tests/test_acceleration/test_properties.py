"""What holds for every size, schedule and batch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from itpn_mm.acceleration import TokenMigration, trace_migration
from itpn_mm.acceleration.acceleration import Acceleration
from itpn_mm.necks import TransformerPyramidNeck
from tests.checklist import note_difference
from tests.slow_acceleration import cut, schedule_layers, tokens_left

from .models import HEADS, PATCH, WIDTH, FastiTPN, HiViT, accelerated, images, plain
from .strategies import options, ratios, schedules

DEPTH = 3
SIDES = st.integers(1, 33)
GRIDS = st.tuples(SIDES, SIDES)
SMALL_GRIDS = st.tuples(st.integers(1, 12), st.integers(1, 12))
SEEDS = st.integers(0, 99)


@st.composite
def models(draw, kind=None, **fixed):
    """A backbone with random weights and any acceleration, in evaluation mode."""
    torch.manual_seed(draw(SEEDS))
    kind = kind or draw(st.sampled_from([HiViT, FastiTPN]))
    kwargs = dict(cls_token=draw(st.booleans())) if kind is FastiTPN else {}
    return accelerated(plain(kind, DEPTH, **kwargs), **{**draw(options(DEPTH)), **fixed}).eval()


@st.composite
def migrations(draw):
    """Arguments that let many tokens leave."""
    schedule = draw(schedules(DEPTH))
    ratio = draw(ratios(schedule, DEPTH).filter(lambda r: r > 0.1))
    return dict(ratio=ratio, schedule=schedule, window_size=draw(st.integers(2, 12)))


def window_ids(grid, size):
    """Patches of each window."""
    h, w = grid
    return [
        {y * w + x for y in rows for x in cols} for rows in cut(h, size) for cols in cut(w, size)
    ]


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(model=models(), grid=GRIDS, batch=st.integers(1, 4))
def test_every_patch_is_kept_or_left_once(model, grid, batch):
    """So no padding of a window leaves or is put back, and no slot is counted twice."""
    number, seen = grid[0] * grid[1], []
    departures = trace_migration(model, images(grid, batch))
    for departure in departures:
        assert departure.ids.shape[0] == batch
        assert ((departure.ids >= 0) & (departure.ids < number)).all()
        seen.append(departure.ids)
    assert [d.layer for d in departures] == sorted({d.layer for d in departures})
    dropped = torch.cat(seen, 1) if seen else torch.empty(batch, 0)
    assert all(len(set(ids.tolist())) == len(ids) for ids in dropped)
    left = torch.tensor([0, *(d.ids.shape[1] for d in departures)]).cumsum(0)
    layers = [-1, *(d.layer for d in departures)]
    counts = model.acceleration.tokens_per_layer(*grid)
    for layer, count in enumerate(counts):
        gone = left[max(i for i, start in enumerate(layers) if start <= layer)].item()
        assert count == number - gone  # kept + dropped
    maps = model(images(grid, batch))
    assert [x.shape[2:] for x in maps] == [tuple(s * n for n in grid) for s in (4, 2, 1)]
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(chosen=migrations(), kind=st.sampled_from([HiViT, FastiTPN]), grid=GRIDS, data=st.data())
def test_what_left_comes_back_as_it_was(chosen, kind, grid, data):
    """Exactly: as the layer it did not take part in would have taken it."""
    torch.manual_seed(data.draw(SEEDS))
    windows = data.draw(st.sampled_from([{}, dict(window_attention=True, gathering=True)]))
    model, x = accelerated(plain(kind, DEPTH), **chosen, **windows).eval(), images(grid, 2)
    final = model(x)[2].flatten(2).transpose(1, 2)
    for departure in trace_migration(model, x):
        before = copy.deepcopy(model)
        for block in before.stages[2][departure.layer :]:  # these and all later ones do nothing
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        entered = before(x)[2].flatten(2).transpose(1, 2)
        index = departure.ids.unsqueeze(-1).expand(-1, -1, WIDTH)
        assert torch.equal(final.gather(1, index), entered.gather(1, index))
        stayed = torch.ones(final.shape[:2]).scatter(1, departure.ids, 0)
        for earlier in trace_migration(model, x):
            if earlier.layer < departure.layer:
                stayed.scatter_(1, earlier.ids, 0)
        assert ((final != entered).any(-1) == stayed.bool()).all()


@pytest.mark.checklist('migration')
@settings(max_examples=250, deadline=None)
@given(depth=st.integers(1, 24), grid=GRIDS, size=st.integers(2, 40), data=st.data())
def test_counts_follow_the_formula(depth, grid, size, data):
    schedule = data.draw(schedules(depth))
    ratio = data.draw(ratios(schedule, depth))
    acceleration = Acceleration(
        WIDTH,
        HEADS,
        depth,
        ratio=ratio,
        schedule=schedule,
        window_size=size,
        window_attention=False,
        global_layers=(),
        gathering=False,
        rel_pos_bias=None,
    )
    layers = schedule_layers(schedule, depth)
    windows = window_ids(grid, size)
    slots = max(map(len, cut(grid[0], size))) * max(map(len, cut(grid[1], size)))
    left = [tokens_left(len(ids), slots, ratio, len(layers)) for ids in windows]
    expected = [grid[0] * grid[1]] * depth
    for step, layer in enumerate(layers):
        expected[layer:] = [sum(counts[step] for counts in left)] * (depth - layer)
    assert acceleration.tokens_per_layer(*grid) == expected
    assert all(counts[-1] >= 1 for counts in left)


def test_29_of_100_tokens_leave():
    model = TokenMigration(plain(), ratio=0.29, schedule=dict(first=2), window_size=10)
    assert model.acceleration.tokens_per_layer(20, 10) == [170, 142, 142]  # 15, then 14 a window


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(model=models(), grid=GRIDS, batch=st.integers(1, 3), training=st.booleans())
def test_blocks_see_that_many_tokens(model, grid, batch, training):
    """Nothing is padded: the rows through each MLP are the tokens of `tokens_per_layer`."""
    model.train(training)
    rows = [0] * DEPTH

    def count(layer):
        def hook(_, args):
            rows[layer] += args[0].numel() // WIDTH

        return hook

    for layer, block in enumerate(model.stages[2]):
        block.mlp.register_forward_pre_hook(count(layer))
    model(images(grid, batch))
    extra = model.num_prefix_tokens
    if model.acceleration.gathering_token is not None:
        extra += len(window_ids(grid, model.acceleration.window_size))
    expected = model.acceleration.tokens_per_layer(*grid)
    assert rows == [batch * (patches + extra) for patches in expected]


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(model=models(), grid=GRIDS, batch=st.integers(2, 4), data=st.data())
def test_images_do_not_know_each_other(model, grid, batch, data):
    """Alone, with other mates and in another order, an image gives the same."""
    model, x = model.double(), images(grid, batch, dtype=torch.float64)
    order = data.draw(st.permutations(range(batch)))
    together, left = model(x), trace_migration(model, x)
    moved, left_moved = model(x[order]), trace_migration(model, x[order])
    alone, left_alone = model(x[:1]), trace_migration(model, x[:1])
    for a, b, c in zip(together, moved, alone):
        torch.testing.assert_close(b, a[order], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(c, a[:1], atol=1e-9, rtol=1e-9)
    for a, b, c in zip(left, left_moved, left_alone, strict=True):
        assert torch.equal(b.ids.sort().values, a.ids[order].sort().values)
        assert torch.equal(c.ids.sort().values, a.ids[:1].sort().values)


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(model=models(), height=st.integers(PATCH, 60), width=st.integers(PATCH, 60))
def test_padding_to_whole_patches_changes_nothing(model, height, width):
    x = torch.randn(2, 3, height, width)
    padded = F.pad(x, (0, -width % PATCH, 0, -height % PATCH))
    for a, b in zip(model(x), model(padded)):
        assert torch.equal(a, b)


@pytest.mark.checklist('migration')
@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(chosen=migrations(), grid=SMALL_GRIDS, rel_pos=st.sampled_from([None, 'window']), seed=SEEDS)
def test_windows_do_not_know_each_other(chosen, grid, rel_pos, seed):
    """Neither do tokens that a smaller window lacks have any effect."""
    torch.manual_seed(seed)
    model = accelerated(plain(), **chosen, window_attention=True, rel_pos_bias=rel_pos)
    model, x = model.double().eval(), images(grid, 1, dtype=torch.float64)
    windows = window_ids(grid, chosen['window_size'])
    changed = x.clone()
    for patch in windows[-1]:
        row, col = (PATCH * n for n in divmod(patch, grid[1]))
        changed[:, :, row : row + PATCH, col : col + PATCH].normal_()
    before, after = (model(y)[2][0].flatten(1) for y in (x, changed))
    others = [patch for ids in windows[:-1] for patch in ids]
    torch.testing.assert_close(after[:, others], before[:, others], atol=1e-9, rtol=1e-9)
    assert (after != before)[:, sorted(windows[-1])].any(0).all()


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(grid=SMALL_GRIDS, size=st.integers(2, 6), seed=SEEDS)
def test_a_window_is_an_image_of_its_own(grid, size, seed):
    """Plain windows without positions: what the backbone gives for the pixels of each."""
    torch.manual_seed(seed)
    model = plain(use_abs_pos_emb=False).double().eval()
    x = images(grid, 2, dtype=torch.float64)
    wrapped = TokenMigration(copy.deepcopy(model), window_size=size, window_attention=True)
    whole = wrapped(x)[2]
    for rows in cut(grid[0], size):
        for cols in cut(grid[1], size):
            top, bottom = rows[0], rows[-1] + 1
            left, right = cols[0], cols[-1] + 1
            crop = x[:, :, PATCH * top : PATCH * bottom, PATCH * left : PATCH * right]
            torch.testing.assert_close(
                whole[:, :, top:bottom, left:right], model(crop)[2], atol=1e-9, rtol=1e-9
            )


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([HiViT, FastiTPN]),
    grid=GRIDS,
    size=st.integers(2, 40),
    seed=SEEDS,
    data=st.data(),
)
def test_nothing_on_is_the_backbone_bit_for_bit(kind, grid, size, seed, data):
    torch.manual_seed(seed)
    rel_pos = data.draw(st.sampled_from(kind.rel_pos_kinds))
    model, x = plain(kind, rel_pos_bias=rel_pos).eval(), images(grid, 2)
    expected = model(x)
    schedule = data.draw(schedules(DEPTH))
    wrapped = TokenMigration(model, ratio=0.0, schedule=schedule, window_size=size)
    found = wrapped(x)
    note_difference('migration of 0 %', found, expected, '<= 0')
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert trace_migration(wrapped, x) == []


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([HiViT, FastiTPN]),
    grid=GRIDS,
    more=st.integers(0, 9),
    cls_token=st.booleans(),
    seed=SEEDS,
    data=st.data(),
)
def test_one_window_is_global_attention(kind, grid, more, cls_token, seed, data):
    torch.manual_seed(seed)
    kwargs = dict(cls_token=cls_token) if kind is FastiTPN else {}
    rel_pos = data.draw(st.sampled_from(kind.rel_pos_kinds))
    model, x = plain(kind, rel_pos_bias=rel_pos, **kwargs).eval(), images(grid, 2)
    expected = model(x)
    size = max(*grid, 2) + more
    found = TokenMigration(model, window_size=size, window_attention=True)(x)
    note_difference('a single window', found, expected, '<= 1e-5')
    for a, b in zip(found, expected):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.checklist('equivalences')
@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([HiViT, FastiTPN]),
    grid=GRIDS,
    cls_token=st.booleans(),
    seed=SEEDS,
    data=st.data(),
)
def test_gathering_starts_as_windows(kind, grid, cls_token, seed, data):
    torch.manual_seed(seed)
    kwargs = dict(cls_token=cls_token) if kind is FastiTPN else {}
    model = plain(kind, DEPTH, **kwargs).eval()
    chosen = {**data.draw(options(DEPTH)), 'window_attention': True}
    chosen.setdefault('global_layers', (1,))
    x, kind = images(grid, 2), chosen.pop('rel_pos_bias', None)
    chosen['gathering'] = False
    windows = TokenMigration(copy.deepcopy(model), **chosen)
    expected = windows(x)
    for rel_pos in {kind, None} - {'all'}:
        chosen.update(gathering=True, rel_pos_bias=rel_pos)
        for a, b in zip(TokenMigration(copy.deepcopy(model), **chosen)(x), expected):
            assert torch.equal(a, b)


@pytest.mark.checklist('migration')
@settings(max_examples=30, deadline=None)
@given(
    chosen=migrations(),
    grid=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    seed=SEEDS,
    data=st.data(),
)
def test_gradients_reach_what_left_through_the_pyramid(chosen, grid, seed, data):
    """At each patch, from the levels of the pyramid there alone."""
    torch.manual_seed(seed)
    windows = data.draw(st.sampled_from([{}, dict(window_attention=True)]))
    model = accelerated(plain(FastiTPN), **chosen, **windows)
    neck, x, seen = TransformerPyramidNeck((4, 8, 16), 8, out_strides=(4, 8, 16)), images(grid), {}
    model.merges[1].register_forward_hook(lambda *args: seen.update(x=args[2]))
    departures = trace_migration(model, x)
    maps = neck(model(x))
    seen['x'].retain_grad()
    for departure in departures:
        patch = departure.ids[0, 0].item()
        row, col = divmod(patch, grid[1])
        for level, side in zip(maps, (4, 2, 1)):
            seen['x'].grad = None
            place = level[0, :, side * row : side * (row + 1), side * col : side * (col + 1)]
            place.square().sum().backward(retain_graph=True)
            gradient = seen['x'].grad[0].flatten(0, 1)
            assert gradient[patch].any()
            if departure.layer == 0:  # it met no other token before it left
                assert not torch.cat([gradient[:patch], gradient[patch + 1 :]]).any()


@pytest.mark.parametrize('cls_token', [False, True])
def test_dropping_paths_takes_an_image_as_a_whole(cls_token):
    """Also the gathering tokens and each window."""
    options = dict(window_size=2, window_attention=True, gathering=True)
    model = accelerated(plain(FastiTPN, 1, drop_path_rate=0.8, cls_token=cls_token), **options)
    seen = {}
    model.drop_after_pos.register_forward_hook(lambda *args: seen.update(before=args[2]))
    after = model.train()(images((5, 7), 64))[2].flatten(2).transpose(1, 2)
    before = seen['before'][:, int(cls_token) :]
    changed = (before != after).any(-1).float().mean(1)
    assert set(changed.tolist()) == {0.0, 1.0}
