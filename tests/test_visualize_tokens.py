"""tools/visualize_tokens.py on a tiny backbone and pictures made here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import visualize_tokens as tool  # noqa: E402

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)
ARCH = dict(embed_dims=32, depths=(1, 1, 6), num_heads=2)
BACKBONE = dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64)
WRAPPED = dict(
    type='itpn_mm.TokenMigration',
    backbone=dict(BACKBONE, init_cfg=dict(type='Pretrained', checkpoint='no/such.pth')),
    ratio=0.5,
    schedule=dict(every=2),
    window_size=3,
    window_attention=True,
    gathering=True,
)
PREPROCESSOR = dict(type='DetDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True)
PREPROCESSOR |= dict(pad_size_divisor=32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with two pictures of unequal size."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / 'pictures').mkdir()
    for name, shape in (('a.png', (64, 96, 3)), ('b.jpg', (90, 70, 3))):
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / 'pictures' / name)
    return tmp_path


def write_config(folder: Path, backbone: dict, **kwargs) -> str:
    model = dict(type='NeverBuilt', backbone=backbone, data_preprocessor=PREPROCESSOR)
    path = folder / 'config.py'
    path.write_text(f"default_scope = 'mmdet'\nmodel = {model | kwargs!r}\n")
    return str(path)


def load(**changes):
    return tool.load(BACKBONE, PREPROCESSOR, None, **{'ratio': 0.5, 'window_size': 3, **changes})


def test_trace_is_what_the_backbone_does():
    """Counts of layers, places and windows, with the padding that the model adds."""
    backbone, preprocessor = load(schedule=dict(layers=[1, 4]))
    picture = np.asarray(Image.open('pictures/b.jpg'))
    item = tool.trace(backbone, preprocessor, picture, 'b.jpg')
    assert item.picture.shape == (96, 96, 3) and item.left.shape == (6, 6)
    assert np.array_equal(item.picture[:90, :70], picture)
    assert (item.picture[90:] == tool.PADDING).all() and (item.picture[:, 70:] == 225).all()
    assert item.edges == ([0, 3, 6], [0, 3, 6]) and item.layers == [1, 4]
    staying = [36 - ((item.left >= 0) & (item.left <= layer)).sum() for layer in range(6)]
    assert item.counts == staying == [36, 28, 28, 28, 20, 20]
    for i in range(0, 6, 3):
        for j in range(0, 6, 3):  # each window loses the same
            assert (item.left[i : i + 3, j : j + 3] >= 0).sum() == 4


def test_the_model_sees_normalised_rgb(monkeypatch):
    seen = []
    monkeypatch.setattr(tool, 'trace_migration', lambda _, images: seen.append(images) or [])
    picture = np.asarray(Image.open('pictures/a.png'))
    expected = torch.from_numpy(picture / 1.0).permute(2, 0, 1) - torch.tensor(MEAN)[:, None, None]
    expected = expected / torch.tensor(STD)[:, None, None]
    for settings in (PREPROCESSOR, dict(mean=MEAN, std=STD, to_rgb=True)):
        backbone, preprocessor = tool.load(BACKBONE, settings, None, ratio=0.2)
        tool.trace(backbone, preprocessor, picture, 'a')
        assert torch.allclose(seen.pop()[0].double(), expected, atol=1e-4)


def test_painted_patches():
    """Patches that have left are coloured by their layer, the rest is grey."""
    picture = np.full((64, 32, 3), (200, 100, 0), dtype=np.uint8)
    left = np.array([[-1, 0], [3, -1], [-1, -1], [0, 3]])
    item = tool.Trace('x', picture, left, ([0, 4], [0, 2]), [6, 6, 6, 4])
    colours = tool._colours(item.layers)
    for layer, shown in ((0, {0}), (3, {0, 3})):
        painted = tool._paint(item, layer, colours)
        for row in range(4):
            for col in range(2):
                patch = painted[16 * row : 16 * row + 16, 16 * col : 16 * col + 16].reshape(-1, 3)
                assert (patch == patch[0]).all()
                if left[row, col] in shown:
                    ratio = patch[0] / colours[left[row, col]]
                    assert np.allclose(ratio, ratio[0]) and ratio[0] < 1
                else:
                    assert np.allclose(patch, 100 / 255)


@pytest.mark.parametrize('layers', [1, 2, 12])
@pytest.mark.parametrize('shape', [(4, 4), (2, 12), (12, 2)])
def test_figure(layers, shape):
    """Panels for the picture and at most seven layers, the last one included; bars for all."""
    left = np.full(shape, -1)
    left.flat[:layers] = range(layers)
    picture = np.zeros((16 * shape[0], 16 * shape[1], 3), dtype=np.uint8)
    size = left.size
    counts = [size - n - 1 for n in range(layers)] + [size - layers] * 2
    item = tool.Trace('x.png', picture, left, ([0, shape[0]], [0, 1, shape[1]]), counts)
    figure = tool.draw(item, '(a note)')
    panels = [axes for axes in figure.axes if axes.get_images()]
    titles = [axes.get_title() for axes in panels]
    assert len(panels) == 1 + min(layers, tool.STEPS)
    assert titles[0] == f'{shape[0]} x {shape[1]} patches\n1 x 2 windows'
    assert titles[-1] == f'before layer {layers - 1}\n{layers} of {size} have left'
    assert all(len(axes.get_lines()) == 1 for axes in panels)  # the border between the windows
    bars = figure.axes[-1].patches
    assert [bar.get_height() for bar in bars[: len(counts)]] == counts
    tops = [bar.get_y() + bar.get_height() for bar in bars[-len(counts) :]]
    assert tops == [size] * len(counts)  # what stays and what has left are all patches
    assert 'x.png   (a note)' in figure.get_suptitle()
    width, height = figure.get_size_inches()
    assert tool.NARROWEST <= width <= tool.WIDTH + 0.01 and height < 14


def test_command_line(folder, capsys):
    """A dense config with a checkpoint of its model, a folder, a pattern and a picture."""
    backbone, _ = load()
    state = {f'backbone.{key}': tensor for key, tensor in backbone.state_dict().items()}
    torch.save(dict(state_dict=state), folder / 'a.pth')
    Image.open('pictures/a.png').save('a.tif')
    Image.open('pictures/b.jpg').save('b.tif')
    config = write_config(folder, BACKBONE)
    arguments = ['pictures', 'a.*if', 'b.tif', 'pictures/b.jpg', '--config', config]
    arguments += ['--checkpoint', 'a.pth', '--ratio', '0.5', '--window-size', '3', '--out', 'x/y']
    assert tool.main([*arguments, '--schedule-every', '2', '--size', '128']) == 0
    names = ['a-2_tokens.png', 'a_tokens.png', 'b-2_tokens.png', 'b_tokens.png']
    assert sorted(path.name for path in (folder / 'x/y').iterdir()) == names
    out = capsys.readouterr().out
    # 96 x 128 pixels, 6 x 8 patches, 2 x 3 windows of 3 x 3 and 3 x 2
    assert '[1/4] pictures/a.png: 48 -> 30 patches' in out
    assert f'wrote {Path("x/y/a_tokens.png")}' in out
    with Image.open('x/y/a_tokens.png') as picture:
        assert picture.size[0] > 600


def test_config_that_accelerates(folder, capsys):
    """It is taken as it is, changed by options, or replaced by a setting."""
    config = write_config(folder, WRAPPED, data_preprocessor=None)

    def run(*options: str) -> str:
        assert tool.main(['pictures/a.png', '--config', config, *options]) == 0
        return capsys.readouterr().out

    backbone, preprocessor = tool.load(WRAPPED, {}, None)
    assert backbone.acceleration.window_layers and backbone.acceleration.gathering_token is not None
    assert backbone.acceleration.schedule.layers == [0, 2, 4]
    item = tool.trace(backbone, preprocessor, np.asarray(Image.open('pictures/a.png')), 'a')
    assert item.edges == ([0, 2, 4], [0, 3, 6])
    assert f'24 -> {item.counts[-1]} patches' in run()
    assert '24 -> 24 patches' not in run('--schedule-layers', '3', '--window-size', '6')
    backbone, _ = tool.load(WRAPPED, {}, None, 'migration-10', window_size=4)
    assert backbone.acceleration.gathering_token is None
    assert backbone.acceleration.schedule.ratio == 0.1
    assert '24 -> 22 patches' in run('--setting', 'migration-10')


def test_bad_pictures_are_skipped(folder, capsys):
    (folder / 'pictures' / 'c.png').write_text('no picture')
    Image.new('RGB', (300, 8)).save('pictures/d.png')
    status = tool.main(['pictures', 'no.png', '--config', write_config(folder, WRAPPED)])
    printed = capsys.readouterr()
    assert status == 1
    assert 'pictures/c.png: skipped, cannot be read as a picture' in printed.err
    assert 'no.png: skipped, cannot be read as a picture ([Errno 2]' in printed.err
    assert len(printed.err.splitlines()) == 2  # the flat one is padded to patches by the model
    assert printed.out.count('wrote') == 3


def test_kinds_of_pictures(folder):
    """Grey, with transparency, with a palette, turned by EXIF; large ones are shrunk."""

    def read(path: Path, size: int | None = None) -> np.ndarray:
        return tool.resize(tool.open_picture(path), size, tool.LONG_SIDE)

    for mode in ('L', 'RGBA', 'P', 'CMYK'):
        Image.new(mode, (20, 40)).save(path := folder / f'{mode}.tif')
        assert read(path).shape == (40, 20, 3)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new('RGB', (20, 40)).save(path := folder / 'turned.jpg', exif=exif)
    assert read(path).shape == (20, 40, 3)
    Image.new('RGB', (2 * tool.LONG_SIDE, 50)).save(path := folder / 'large.png')
    assert read(path).shape == (25, tool.LONG_SIDE, 3)
    assert read(path, 3000).shape[1] == 3000
    assert read(path, 10).shape == (1, 10, 3)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['*.gif', '--arch', 'hivit-tiny'], r'\*\.gif: no file matches'),
        (['pictures', '--out', 'pictures', '--arch', 'hivit-tiny'], 'take another folder'),
        (['pictures', '--config', 'config.py'], r'give `--ratio`, for example'),
        (['pictures', '--config', 'config.py', '--setting', 'windows'], r'no token leaves'),
        (['pictures', '--config', 'config.py', '--ratio', '1'], r'`ratio` must be .* got 1\.0'),
        (['pictures', '--config', 'no.py', '--ratio', '0.1'], r"No such file .*'no\.py'"),
        (
            ['pictures', '--config', 'config.py', '--ratio', '0.1', '--checkpoint', 'no.pth'],
            r'no\.pth: no such checkpoint',
        ),
        (
            ['pictures', '--config', 'config.py', '--ratio', '0.9', '--schedule-first', '1'],
            '`schedule`',
        ),
        (['pictures', '--config', 'config.py', '--ratio', '0.1', '--window-size', '1'], '`window_'),
        (['pictures', '--config', 'empty.py', '--ratio', '0.1'], r'has no `model\.backbone`'),
        (['pictures', '--config', 'other.py', '--ratio', '0.1'], r'`backbone` of TokenMigration'),
        (['pictures', '--config', 'typo.py', '--ratio', '0.1'], r'itpn_mm\.HiVit is not in'),
    ],
)
def test_errors_are_one_line(folder, arguments, message):
    write_config(folder, BACKBONE)
    for name, backbone in (
        ('empty', {}),
        ('other', dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=2)),
        ('typo', dict(type='itpn_mm.HiVit')),
    ):
        (folder / f'{name}.py').write_text(f'model = {dict(backbone=backbone or None)}\n')
    with pytest.raises(SystemExit, match=message) as error:
        tool.main(arguments)
    assert '\n' not in str(error.value).strip()
    assert not (folder / 'tokens').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        ([], 'one of the arguments --config --arch is required'),
        (['--arch', 'vit-base'], r"invalid choice: 'vit-base'"),
        (['--arch', 'hivit-tiny', '--size', '0'], '--size must be at least 1 pixel, but got 0'),
        (
            ['--arch', 'hivit-tiny', '--schedule-layers', '1,x'],
            "numbers such as 0,4,8, but got '1,x'",
        ),
        (['--arch', 'hivit-tiny', '--schedule-first', '1', '--schedule-every', '2'], 'not allowed'),
    ],
)
def test_usage(capsys, options, message):
    with pytest.raises(SystemExit, match='2'):
        tool.main(['pictures', *options])
    assert message in capsys.readouterr().err


def test_archs_are_those_of_the_backbones():
    assert tool.ARCHS['fastitpn-base'] == dict(type='itpn_mm.FastiTPN', arch='base')
    assert {name.split('-')[0] for name in tool.ARCHS} == {'hivit', 'fastitpn'}
