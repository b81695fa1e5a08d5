"""tools/visualize_attention.py: probabilities are the model's own, and the picture shows them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch.testing import assert_close

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import visualize_attention as tool  # noqa: E402
from inspection.attention import (  # noqa: E402
    attention_probabilities,
    gathering_probabilities,
    look,
    patches_of_layer,
)
from inspection.components import fit, to_rgb  # noqa: E402
from inspection.models import RANDOM, find_parts, load_parts  # noqa: E402
from inspection.panels import describe_peak, paint_attention  # noqa: E402
from inspection.queries import patch_at, salient_patches  # noqa: E402

from itpn_mm.layers.windows import TokenWindows  # noqa: E402

ARCH = dict(embed_dims=32, depths=(1, 1, 4), num_heads=2)
HIVIT = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64)
FAST = dict(type='itpn_mm.FastiTPN', arch=ARCH, img_size=64)
MIGRATION = dict(type='itpn_mm.TokenMigration', ratio=0.5, window_size=3)
WINDOWS = dict(MIGRATION, window_attention=True, gathering=True, global_layers=(3,))
BACKBONES = {
    'hivit': HIVIT,
    'hivit, bias per block': dict(HIVIT, rel_pos_bias='block'),
    'hivit, decomposed': dict(HIVIT, rel_pos_bias='decomposed'),
    'fast, shared bias': dict(FAST, rel_pos_bias='shared'),
    'fast, class token': dict(FAST, cls_token=True, rel_pos_bias='decoupled'),
    'migration': dict(MIGRATION, backbone=FAST, schedule=dict(every=2)),
    'windows': dict(WINDOWS, backbone=HIVIT, schedule=dict(every=2)),
    'all': dict(WINDOWS, backbone=dict(FAST, cls_token=True), rel_pos_bias='all'),
}
NECK = dict(
    type='itpn_mm.TransformerPyramidNeck',
    in_channels=(8, 16, 32),
    out_channels=16,
    out_strides=(4, 8, 16, 32),
    depth=1,
)
FPN = dict(type='FPN', in_channels=[8, 16, 32], out_channels=8, num_outs=4)
MEAN, STD = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
PREPROCESSOR = dict(type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True)
PREPROCESSOR |= dict(pad_size_divisor=32)


def build(name: str):
    """A backbone whose parameters are all random: biases start at 0, and gathering does nothing."""
    torch.manual_seed(0)
    backbone = MODELS.build(BACKBONES[name]).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory with two pictures of unequal size."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / 'pictures').mkdir()
    for name, shape in (('a.png', (64, 96, 3)), ('b.jpg', (90, 70, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(f'pictures/{name}')
    return tmp_path


def write_config(path: Path, scope: str = 'mmdet', **model) -> str:
    model = dict(type='NeverBuilt', data_preprocessor=PREPROCESSOR, backbone=HIVIT) | model
    path.write_text(f'default_scope = {scope!r}\nmodel = {model!r}\n')
    return str(path)


@pytest.mark.parametrize('name', BACKBONES)
@torch.no_grad()
def test_probabilities_reproduce_the_module(name, monkeypatch):
    """In every layer, values times probabilities are what the module gives, and rows sum to 1."""
    monkeypatch.setattr('inspection.attention.COLUMNS', 7)  # several slices, the last one smaller
    backbone, calls = build(name), []
    for block in backbone.stages[2]:
        block.attn.register_forward_hook(
            lambda module, arguments, out: calls.append((module, arguments, out))
        )
    backbone(torch.rand(2, 3, 90, 120))
    assert len(calls) == 4
    with_gathering = 0
    for module, (x, tokens, bias), out in calls:
        shares = attention_probabilities(module, x, tokens, bias)
        assert shares.shape == (2, 2, x.shape[1], x.shape[1]) and shares.min() >= 0
        assert_close(shares.sum(dim=3), torch.ones_like(shares[..., 0]), atol=1e-5, rtol=0)
        values = module.qkv(x).chunk(3, dim=2)[2].unflatten(2, (2, -1)).transpose(1, 2)
        mixed = (shares @ values).transpose(1, 2).flatten(2)
        if isinstance(tokens, TokenWindows) and tokens.scale is not None:
            to_gathering = gathering_probabilities(module, x, tokens)
            gathered = to_gathering @ values[:, :, : tokens.num_gathering]
            mixed = mixed + tokens.scale(gathered.transpose(1, 2).flatten(2))
            assert_close(to_gathering.sum(dim=3), torch.ones_like(shares[..., 0]))
            with_gathering += 1
        assert_close(module.proj(mixed), out, atol=1e-5, rtol=1e-5)
        rows = torch.tensor([3, 1])
        assert_close(attention_probabilities(module, x, tokens, bias, rows), shares[:, :, rows])
    assert with_gathering == (3 if name in ('windows', 'all') else 0)


@pytest.mark.parametrize('name', ['fast, class token', 'migration', 'windows', 'all'])
@torch.no_grad()
def test_rows_are_these_patches(name):
    """Blocks that change nothing hand each patch through, so a row can be told by its values."""
    backbone = build(name)
    for block in backbone.stages[2]:
        block.register_forward_hook(lambda _, arguments, out: arguments[0])
    images, entering = torch.rand(1, 3, 90, 120), []
    *_, x, tokens = backbone.forward_stem(images)
    patches = backbone.add_positions(x.flatten(1, 2), tokens)[0, backbone.num_prefix_tokens :]
    for block in backbone.stages[2]:
        block.register_forward_pre_hook(lambda _, arguments: entering.append(arguments[0][0]))
    backbone(images)
    counts = []
    for layer, x in enumerate(entering[:4]):  # what follows runs the blocks again
        ids = patches_of_layer(backbone, images, layer)
        assert_close(x[-len(ids) :], patches[ids], atol=0, rtol=0)
        counts.append(len(ids))
    assert counts[0] == 48 or 'migration' in name or name in ('windows', 'all')
    assert (counts[-1] < 48) == (name != 'fast, class token')


@torch.no_grad()
def test_maps_lie_on_the_grid():
    """A query sees its window only; tokens that left are NaN; gathering tokens have their place."""
    backbone = build('windows')  # 6 x 8 patches, windows of 3 rows and 2 or 3 columns
    images = torch.rand(1, 3, 90, 120)
    staying = patches_of_layer(backbone, images, 2)
    query = int(staying[0])
    gone = next(i for i in range(48) if i not in staying)
    stages, seen = look(backbone, images, 2, [query, gone])
    assert [tuple(x.shape) for x in stages] == [(1, 8, 24, 32), (1, 16, 12, 16), (1, 32, 6, 8)]
    for x, y in zip(stages, backbone(images), strict=True):
        assert_close(x, y, atol=0, rtol=0)
    assert seen.windows == ([0, 3, 6], [0, 2, 5, 8])
    shares = seen.maps[0].mean(dim=0)
    assert seen.maps.shape == (2, 2, 6, 8) and seen.maps[1].isnan().all()
    left = torch.ones(48, dtype=torch.bool)
    left[staying] = False
    assert torch.equal(shares.flatten().isnan(), left)
    row, column = query // 8 // 3, [0, 0, 1, 1, 1, 2, 2, 2][query % 8]
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[3 * row : 3 * row + 3, [0, 2, 5][column] : [2, 5, 8][column]] = True
    assert_close(shares[inside].nansum(), torch.tensor(1.0))
    assert shares[~inside].nansum() == 0
    assert seen.gathering.shape == (2, 2, 2, 3) and seen.gathering[1].isnan().all()
    assert_close(seen.gathering[0].sum(dim=(1, 2)), torch.ones(2))
    _, everywhere = look(backbone, images, 3, [query])  # a global layer
    assert everywhere.windows is None and everywhere.gathering is None
    assert (everywhere.maps[0, 0].flatten()[patches_of_layer(backbone, images, 3)] > 0).all()


@torch.no_grad()
def test_gathering_tokens_have_the_place_of_their_window():
    """Windows of 3 x 3 patches come first in a sequence: those of the right, row by row."""
    backbone, calls = build('windows'), []
    module, images = backbone.stages[2][0].attn, torch.rand(1, 3, 90, 120)
    module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    query = 3 * 8 + 6
    _, seen = look(backbone, images, 0, [query])
    x, layout, _ = calls[0]
    row = 6 + patches_of_layer(backbone, images, 0).tolist().index(query)
    expected = gathering_probabilities(module, x, layout)[0, :, row]
    found = seen.gathering[0].flatten(1)[:, [1, 2, 4, 5, 0, 3]]
    assert_close(found, expected, atol=1e-6, rtol=0)


def test_components():
    """Directions are shared by levels, ranges are not; bright places have more of a component."""
    torch.manual_seed(0)
    light = torch.rand(8, 8)
    base = torch.randn(5, 8, 8) * torch.tensor([0.3, 0.0, 0.0, 0.2, 0.1])[:, None, None]
    base[0] += 3 * light
    levels = {'fine': [base, base + 1], 'coarse': [100 * base[:, ::2, ::2], 50 * base[:, :4, :4]]}
    found = fit(levels, [light, light])
    fine, coarse = found['fine'], found['coarse']
    assert torch.equal(fine.directions, coarse.directions)
    assert_close(
        (fine.directions.t() @ fine.directions), torch.eye(3, dtype=torch.double), atol=1e-9, rtol=0
    )
    assert fine.directions[0, 0] > 0.9  # the strongest one, with the sign of brightness
    assert (coarse.high - coarse.low)[0] > 10 * (fine.high - fine.low)[0]
    shown = to_rgb(base, fine)
    assert shown.shape == (8, 8, 3) and shown.min() >= 0 and shown.max() <= 1
    assert np.corrcoef(shown[..., 0].ravel(), light.flatten().numpy())[0, 1] > 0.9
    constant = fit({'flat': [torch.ones(4, 3, 3)]}, [light])['flat']
    assert np.isfinite(to_rgb(torch.ones(4, 3, 3), constant)).all()


def test_queries():
    """The odd patches are chosen, apart from each other; pixels of a file lead to their patch."""
    picture = np.full((70, 100, 3), 100, dtype=np.uint8)
    picture[16:32, 48:64] = 255
    picture[48:64, 16:32] = (0, 100, 0)
    picture[48:64, 32:48] = (0, 105, 0)  # next to it
    picture[64:] = 255  # no whole patch
    assert salient_patches(picture, 16, 2) == [(1, 3), (3, 1)]
    assert len(salient_patches(picture[:16, :16], 16, 5)) == 1
    with pytest.raises(ValueError, match='no whole patch'):
        salient_patches(picture[:10], 16, 2)
    assert patch_at(119, 40, 0.5, 16, (70, 100)) == (1, 3)
    for x, y in ((-1, 0), (200, 0), (0, 140)):
        with pytest.raises(ValueError, match=rf'{x},{y} lies outside its 200 x 140 pixels'):
            patch_at(x, y, 0.5, 16, (70, 100))


def test_painted_attention():
    """Grey where there is none; the largest share has the last colour."""
    picture = np.full((30, 32, 3), (0.9, 0.3, 0.0))
    shares = np.array([[0.2, 0.6], [0.0, np.nan]])
    painted = paint_attention(picture, shares, 16)
    assert painted.shape == (30, 32, 3)
    assert np.allclose(painted[16:], 0.4)
    bright = painted[0, 16]
    assert np.allclose(bright, 0.6 * np.array([0.988, 1.0, 0.645]) + 0.4 * 0.4, atol=0.01)
    assert painted[0, 0].sum() < bright.sum()
    assert describe_peak(shares) == 'up to 1.5 x even'
    assert describe_peak(np.full((2, 2), np.nan)) == 'has left before this layer'


@pytest.mark.parametrize(
    'scope, model, panels',
    [
        ('mmdet', dict(neck=NECK), 7),
        ('mmseg', dict(neck=dict(NECK, concat_inputs=True)), 7),
        (
            'mmdet',
            dict(neck=dict(type='FPN', in_channels=[8, 16, 32], out_channels=8, num_outs=4)),
            7,
        ),
        ('mmpretrain', dict(neck=dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=32)), 3),
        ('mmpretrain', {}, 3),
        ('mmdet', dict(backbone=BACKBONES['all'], neck=NECK), 7),
    ],
    ids=['detector', 'segmentor', 'stock neck', 'classifier', 'no neck', 'accelerated'],
)
def test_models_of_all_kinds(folder, scope, model, panels):
    """Backbone and pyramid are found, loaded, and drawn: stages, and levels that are maps."""
    if scope != 'mmpretrain':
        pytest.importorskip(scope)
    parts = find_parts(Config.fromfile(write_config(folder / 'config.py', scope, **model)))
    torch.manual_seed(5)
    state = {f'backbone.{k}': v for k, v in MODELS.build(parts.backbone).state_dict().items()}
    if parts.neck is not None:
        state |= {f'neck.{k}': v for k, v in MODELS.build(parts.neck).state_dict().items()}
    state = {k: torch.rand_like(v) for k, v in state.items()}
    torch.save(dict(state_dict=state), 'a.pth')
    loaded, notes = load_parts(parts, 'a.pth')
    assert notes == []
    for name, value in loaded.backbone.state_dict().items():
        assert_close(value, state[f'backbone.{name}'], atol=0, rtol=0)
    if panels == 7:
        for name, value in loaded.neck.state_dict().items():
            assert_close(value, state[f'neck.{name}'], atol=0, rtol=0)
    subject = tool.choose_subject(Path('pictures/b.jpg'), None, 16, [])
    model, _ = load_parts(parts, RANDOM)
    sight = tool.see(model, subject, 1)
    shapes = {name: (stride, tuple(x.shape)) for name, (stride, x) in sight.maps.items()}
    assert len(shapes) == panels
    assert shapes['encoder, stage 2'] == (8, (16, 12, 9))  # 96 x 96 without the padding
    if panels == 7:
        channels = 8 if parts.neck['type'] == 'FPN' else 16
        assert shapes['pyramid, level 4'] == (32, (channels, 3, 3))
        assert shapes['pyramid, level 1'] == (4, (channels, 23, 18))
    assert len(tool.feature_panels([sight], [subject])[0]) == panels


def test_command_line(folder, capsys):
    """Rows of two checkpoints, one of them without a pyramid; queries, heads, a smaller picture."""
    pytest.importorskip('mmdet')
    inner = dict(backbone=HIVIT, neck=NECK)
    config = write_config(folder / 'nested.py', backbone=None, detector=inner)
    parts = find_parts(Config.fromfile(config))
    assert parts.prefix == 'detector.'
    backbone = MODELS.build(HIVIT)
    state = {f'detector.backbone.{k}': v for k, v in backbone.state_dict().items()}
    torch.save(dict(state_dict=state), 'a.pth')
    drawn = []
    draw = tool.draw

    def keep(*arguments):
        drawn.extend(draw(*arguments))
        return drawn

    (folder / 'pictures' / 'c.png').write_text('no picture')
    files = ['pictures/c.png', 'pictures/b.jpg']
    arguments = [*files, '--config', config, '--checkpoint', 'random', 'a.pth', '--heads']
    arguments += ['--query', '69,60', '3,3', '--layer', '-2', '--out', 'x/y', '--size', '96']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, 'draw', keep)
        assert tool.main(arguments) == 1
    printed = capsys.readouterr()
    assert 'pictures/c.png: skipped, cannot be read as a picture' in printed.err
    assert [path.name for path in Path('x/y').iterdir()] == ['b_attention.png']
    titles = [axes.get_title() for axes in drawn[0].axes]
    heads = [t for t in titles if ', head ' in t]
    assert len(heads) == 2 * 2 * 2 and 'query 2, head 1\nup to' in heads[3]
    assert len([t for t in titles if 'encoder' in t]) == 6
    assert len([t for t in titles if 'pyramid' in t]) == 4  # of the random weights
    texts = [text.get_text() for part in drawn[0].subfigs for text in part.texts]
    assert 'random weights: attention of layer 2 of 4, features' in texts
    assert (
        'a.pth: attention of layer 2 of 4, features; a.pth: has no pyramid, which is left out'
        in texts
    )
    squares = [p for p in drawn[0].axes[0].patches if p.get_fill() is False]
    # b.jpg is shown at 96 x 75: pixel (69, 60) of its 90 x 70 is (73, 64)
    assert [p.get_xy() for p in squares] == [(64, 64), (0, 0)]
    assert 'Attention of this layer stays' not in texts[-1]


def test_windows_are_drawn(folder):
    config = write_config(folder / 'config.py', backbone=BACKBONES['windows'])
    parts = find_parts(Config.fromfile(config))
    subject = tool.choose_subject(Path('pictures/a.png'), None, 16, [(0, 0)])
    [figure] = tool.draw([subject], parts, [RANDOM], 0, False)
    axes = figure.axes[1]
    assert 'query 1, mean of 2 heads' in axes.get_title()
    assert sorted(line.get_xdata()[0] for line in axes.get_lines())[-1] == 48
    assert 'to gathering tokens' in figure.axes[2].get_title()
    texts = [text.get_text() for part in figure.subfigs for text in part.texts]
    assert 'Attention of this layer stays within a window' in texts[-1]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--layer', '4'], r'`--layer` must be -4 to 3, as stage 3 has 4 layers, but got 4'),
        (['--checkpoint', 'no.pth'], r'no\.pth: no such checkpoint'),
        (['--checkpoint', 'other.pth'], r'other\.pth: '),
        (['--config', 'empty.py'], r'empty\.py: has no `model\.backbone`'),
        (['--config', 'other.py'], r'the backbone is a GlobalAveragePoolNorm, but must be'),
        (['--out', 'pictures'], 'take another folder'),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    write_config(folder / 'config.py')
    write_config(folder / 'empty.py', backbone=None)
    other = dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=2)
    write_config(folder / 'other.py', backbone=other)
    torch.save({'x.weight': torch.zeros(2)}, 'other.pth')
    with pytest.raises(SystemExit, match=message) as error:
        tool.main(['pictures', '--config', 'config.py', *arguments])
    assert '\n' not in str(error.value).strip()
    assert not Path('attention').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (['--query', '3'], "a column and a row such as 120,80, but got '3'"),
        (['--size', '0'], '--size must be at least 1 pixel, but got 0'),
    ],
)
def test_usage(capsys, options, message):
    with pytest.raises(SystemExit, match='2'):
        tool.main(['a.png', '--config', 'x.py', *options])
    assert message in capsys.readouterr().err


def test_a_query_outside_skips_the_picture(folder, capsys):
    config = write_config(folder / 'config.py')
    assert tool.main(['pictures', '--config', config, '--query', '80,10']) == 1
    printed = capsys.readouterr()
    assert 'b.jpg: skipped, `--query` 80,10 lies outside its 70 x 90 pixels' in printed.err
    assert 'wrote attention/a_attention.png' in printed.out
