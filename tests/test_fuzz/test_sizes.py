"""Images of any size: padded to whole patches, or one error that says what is too small."""

import random

import pytest
import torch

from itpn_mm.registry import MODELS

pytestmark = pytest.mark.checklist('fuzz-sizes')
ARCH = dict(embed_dims=16, depths=(1, 1, 2), num_heads=2)
PATCH, CASES, CASES_BY_DEFAULT = 16, 200, 40
BACKBONES = {
    'HiViT': dict(type='itpn_mm.HiViT', arch=ARCH, img_size=64, rel_pos_bias='decomposed'),
    'Fast-iTPN': dict(
        type='itpn_mm.FastiTPN', arch=ARCH, img_size=64, cls_token=True, rel_pos_bias='decoupled'
    ),
}
ACCELERATIONS = {
    'dense': None,
    'migration': dict(ratio=0.4, schedule=dict(every=1), window_size=3),
    'windows': dict(window_attention=True, window_size=2),
    'all': dict(
        ratio=0.4,
        schedule=dict(every=1),
        window_size=3,
        window_attention=True,
        gathering=True,
        global_layers=(1,),
    ),
}


@pytest.fixture(scope='module')
def models() -> dict:
    """Backbones with their pyramids."""
    torch.manual_seed(0)
    found = {}
    for name, backbone in BACKBONES.items():
        for kind, acceleration in ACCELERATIONS.items():
            cfg = dict(backbone)
            if acceleration is not None:
                cfg = dict(type='itpn_mm.TokenMigration', backbone=cfg, **acceleration)
            neck = dict(
                type='itpn_mm.TransformerPyramidNeck',
                in_channels=(4, 8, 16),
                out_channels=4,
                out_strides=(4, 8, 16),
                depth=1,
            )
            found[f'{name}, {kind}'] = MODELS.build(cfg), MODELS.build(neck)
    return found


def sizes() -> list[tuple[int, int]]:
    draw = random.Random(0)
    return [(draw.randint(16, 96), draw.randint(16, 96)) for _ in range(CASES)]


def check(models: dict, start: int, stop: int) -> None:
    """Each size with one of the models after the other, in evaluation and in training."""
    for number, (height, width) in list(enumerate(sizes()))[start:stop]:
        name = list(models)[number % len(models)]
        backbone, neck = models[name]
        images = torch.rand(1 + number % 2, 3, height, width)
        wanted = [(-(-side // PATCH)) * PATCH for side in (height, width)]
        for mode in (False, True):
            backbone.train(mode), neck.train(mode)
            with torch.set_grad_enabled(mode):
                maps = neck(backbone(images))
            for stride, x in zip(neck.out_strides, maps, strict=True):
                shape = (len(images), 4, *(side // stride for side in wanted))
                assert x.shape == shape, f'{name} at {height} x {width}: {tuple(x.shape)}'
                assert x.isfinite().all(), f'{name} at {height} x {width}, level {stride}'
        sum(x.square().mean() for x in maps).backward()
        for part in (backbone, neck):
            for key, parameter in part.named_parameters():
                assert parameter.grad.isfinite().all(), f'{name} at {height} x {width}: {key}'
                parameter.grad = None


def test_some_sizes(models, record_figure):
    check(models, 0, CASES_BY_DEFAULT)
    record_figure('image sizes in evaluation and training', CASES_BY_DEFAULT, 'all')


@pytest.mark.slow
def test_sizes(models, record_figure):
    check(models, CASES_BY_DEFAULT, CASES)
    assert sum(h % PATCH > 0 or w % PATCH > 0 for h, w in sizes()) > 150
    record_figure('more image sizes', CASES - CASES_BY_DEFAULT, 'all')


def test_padding_is_at_the_end(models):
    """What is documented: zeros to the right and below, up to whole patches."""
    draw = random.Random(1)
    for name, (backbone, neck) in models.items():
        backbone.eval(), neck.eval()
        height, width = (draw.randint(17, 63) for _ in range(2))
        images = torch.rand(1, 3, height, width)
        padded = torch.zeros(1, 3, -(-height // PATCH) * PATCH, -(-width // PATCH) * PATCH)
        padded[:, :, :height, :width] = images
        with torch.no_grad():
            for x, wanted in zip(neck(backbone(images)), neck(backbone(padded)), strict=True):
                assert torch.equal(x, wanted), f'{name} at {height} x {width}'


@pytest.mark.parametrize('size', [(15, 64), (64, 1), (8, 8), (0, 32)])
def test_less_than_a_patch(models, size):
    for backbone, _ in models.values():
        message = f'images must be at least one patch \\(16 x 16 pixels\\), but got {size[0]} x '
        with pytest.raises(ValueError, match=message + str(size[1])):
            backbone(torch.rand(1, 3, *size))


def test_too_small_for_a_coarse_level(models):
    """40 sizes and a level of stride 64: there or a message, as the size of the padded image is."""
    backbone, _ = models['HiViT, dense']
    neck = MODELS.build(
        dict(
            type='itpn_mm.TransformerPyramidNeck',
            in_channels=(4, 8, 16),
            out_channels=4,
            out_strides=(16, 64),
        )
    )
    for height, width in sizes()[:40]:
        maps = backbone(torch.rand(1, 3, height, width))
        if min(maps[-1].shape[2:]) < 4:
            with pytest.raises(ValueError, match='the image is too small for a level of stride'):
                neck(maps)
        else:
            assert neck(maps)[-1].shape[2:] == tuple(n // 4 for n in maps[-1].shape[2:])


def test_pretraining_takes_whole_patches():
    pytest.importorskip('mmpretrain')
    from ..test_pretraining.models import build_itpn

    model = build_itpn()
    for height, width in sizes()[:40]:
        images = torch.rand(1, 3, height, width)
        if height % PATCH or width % PATCH:
            message = f'must be whole patches of 16 x 16 pixels, but got {height} x {width}'
            with pytest.raises(ValueError, match=message):
                model.loss(images)
        else:
            assert all(loss.isfinite() for loss in model.loss(images).values())
