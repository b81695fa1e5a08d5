"""tools/visualize_reconstruction.py on a tiny model, a checkpoint of it and pictures made here."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

pytest.importorskip('mmpretrain')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import visualize_reconstruction as tool  # noqa: E402

SIDE, PATCH, KEPT = 64, 16, 4  # pixels, pixels, visible patches of the 16
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)
CONFIG = f"""
default_scope = 'mmpretrain'
model = dict(
    type='itpn_mm.iTPN',
    data_preprocessor=dict(type='SelfSupDataPreprocessor', mean={MEAN}, std={STD}, to_rgb=True),
    backbone=dict(
        type='itpn_mm.HiViT',
        arch=dict(embed_dims=32, depths=(1, 1, 1), num_heads=2),
        img_size={SIDE},
    ),
    neck=dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=(8, 16, 32),
        out_channels=16,
        out_strides=(4, 8, 16),
        depth=1,
    ),
    masking=dict(type='itpn_mm.RandomMasking', ratio=0.75),
    decoder=dict(
        type='itpn_mm.MIMDecoder',
        in_channels=16,
        embed_dims=32,
        depth=1,
        num_heads=2,
        img_size={SIDE},
    ),
    head=dict(type='itpn_mm.PixelReconstructionHead', embed_dims=32),
    mfm_head=dict(type='itpn_mm.MFMHead', stage_channels=(8, 16, 32), in_channels=32),
    teacher=dict(type='itpn_mm.EMATeacher'),
)
"""


@pytest.fixture
def case(tmp_path):
    """A config, a checkpoint as a training leaves it, and two pictures of other sizes."""
    config = tmp_path / 'tiny.py'
    config.write_text(CONFIG)
    cfg = Config.fromfile(config)
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    checkpoint = tmp_path / 'tiny.pth'
    torch.save({'meta': {'epoch': 1}, 'state_dict': model.state_dict()}, checkpoint)
    rng = np.random.default_rng(0)
    pictures = []
    for name, shape in (('a.png', (64, 64, 3)), ('b.png', (80, 120, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
        pictures.append(str(tmp_path / name))
    return str(config), str(checkpoint), pictures, model


def patches(picture):
    """(H, W, 3) -> (L, patch, patch, 3), row-major."""
    n = picture.shape[0] // PATCH
    blocks = picture.reshape(n, PATCH, n, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(n * n, PATCH, PATCH, 3)


def cells(image, row, left=tool.MARGIN):
    """The three pictures of a row of the grid, reduced to the size of the model."""
    scale = -(-tool.MIN_CELL // SIDE)
    side, top = SIDE * scale, tool.MARGIN + tool.CAPTION
    top += row * (side + tool.CAPTION)
    found = []
    for i in range(3):
        x = left + i * (side + tool.GAP)
        cell = np.asarray(image)[top : top + side, x : x + side]
        found.append(cell[::scale, ::scale])
        assert (cell == found[-1].repeat(scale, 0).repeat(scale, 1)).all()
    return found


def test_grid_keeps_visible_patches(case, tmp_path, capsys):
    config, checkpoint, pictures, _ = case
    out = tmp_path / 'made' / 'grid.png'
    assert tool.main([config, checkpoint, *pictures, '--out', str(out)]) == 0
    image = Image.open(out)
    side = SIDE * 4
    width = 3 * side + 2 * tool.GAP + 2 * tool.MARGIN
    height = 2 * tool.MARGIN + tool.CAPTION + 2 * (side + tool.CAPTION) + 2 * 20
    assert (image.size, image.mode) == ((width, height), 'RGB')

    shown, masked, prediction = (patches(cell) for cell in cells(image, 0))
    assert (shown == patches(np.asarray(Image.open(pictures[0])))).all()
    visible = (masked == shown).all(axis=(1, 2, 3))
    assert visible.sum() == KEPT
    assert (masked[~visible] == tool.GREY).all()
    assert (prediction[visible] == shown[visible]).all()
    assert (prediction[~visible] != shown[~visible]).any(axis=(1, 2, 3)).all()
    printed = capsys.readouterr().out
    assert 'a.png: loss_pixel' in printed and 'b.png: loss_pixel' in printed


def test_prediction_and_loss_are_the_models(case):
    config, checkpoint, pictures, model = case
    loaded = tool.load_model(Config.fromfile(config), checkpoint)
    assert loaded.teacher is None
    raw = tool.read_pictures(pictures, SIDE, SIDE)
    assert raw.shape == (2, 3, SIDE, SIDE)
    torch.manual_seed(3)
    items = tool.reconstruct(loaded, raw, ['a', 'b'])

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    images = (raw.flip(1) - mean) / std
    torch.manual_seed(3)
    mask = model.draw_mask(images)
    with torch.no_grad():
        pixels = model.eval().reconstruct(images, mask) * std + mean
        tokens = model.decode(model.encode(images, mask), images, mask)
        loss = model.head.loss(tokens, images, mask)['loss_pixel'].item()
    for i, item in enumerate(items):
        expected = pixels[i].permute(1, 2, 0).round().clamp(0, 255).numpy()
        hidden = mask.masked[i].numpy()
        error = patches(item.prediction)[hidden] - patches(expected)[hidden]
        assert np.abs(error).max() <= 1  # of rounding
    assert np.mean([item.losses['loss_pixel'] for item in items]) == pytest.approx(loss, abs=1e-5)
    assert items[0].losses != items[1].losses


def test_seed_chooses_the_masks(case, tmp_path):
    config, checkpoint, pictures, _ = case
    files = []
    for name, seed in (('1.png', '1'), ('2.png', '2'), ('again.png', '1')):
        tool.main([config, checkpoint, pictures[0], '--out', str(tmp_path / name), '--seed', seed])
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[2] != files[1]


def test_four_pictures_stand_in_two_columns(case, tmp_path):
    config, checkpoint, pictures, _ = case
    out = tmp_path / 'grid.png'
    tool.main([config, checkpoint, *pictures, *pictures, '--out', str(out)])
    block = 3 * SIDE * 4 + 2 * tool.GAP
    image = Image.open(out)
    assert image.width == 2 * block + 3 * tool.MARGIN
    first = cells(image, 0)[0]
    assert (cells(image, 1)[0] == first).all()  # the third picture is the first again
    assert not (cells(image, 0, left=2 * tool.MARGIN + block)[0] == first).all()


@pytest.mark.parametrize('channels', ['to_rgb=True', 'to_rgb=False'])
def test_colours_are_those_of_the_picture(case, tmp_path, monkeypatch, channels):
    """A model that reconstructs perfectly shows the picture, whichever its order of channels."""
    config, checkpoint, pictures, _ = case
    Path(config).write_text(CONFIG.replace('to_rgb=True', channels))
    model = tool.load_model(Config.fromfile(config), checkpoint)
    monkeypatch.setattr(model.head, 'reconstruct', lambda tokens, images: images)
    item = tool.reconstruct(model, tool.read_pictures(pictures[:1], SIDE, SIDE), ['a'])[0]
    assert np.abs(item.prediction.astype(int) - np.asarray(Image.open(pictures[0]))).max() <= 1


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: (c[0], c[1], ['missing.png']), r'missing\.png: no such picture'),
        (lambda c: (c[0], c[1], [c[0]]), r'tiny\.py: cannot be read as a picture'),
        (lambda c: (c[0], 'none.pth', c[2]), r'none\.pth: no such checkpoint'),
    ],
)
def test_bad_files_are_named(case, change, message):
    config, checkpoint, pictures = change(case)
    with pytest.raises(SystemExit, match=message):
        tool.main([config, checkpoint, *pictures])


def test_checkpoint_of_another_model_is_refused(case, tmp_path):
    _, checkpoint, pictures, _ = case
    other = tmp_path / 'other.py'
    other.write_text(CONFIG.replace('depth=1,\n        num_heads', 'depth=2,\n        num_heads'))
    with pytest.raises(SystemExit, match=r'does not fit the model.*decoder\.blocks\.1'):
        tool.main([str(other), checkpoint, *pictures])


def test_model_that_cannot_reconstruct_is_refused(case, tmp_path):
    other = tmp_path / 'classifier.py'
    other.write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=2),"
        " head=dict(type='ClsHead'))"
    )
    with pytest.raises(SystemExit, match='ImageClassifier does not reconstruct pixels'):
        tool.main([str(other), case[1], *case[2]])
