"""Random configs of tiny models, what they have to do, and the smallest config that fails."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from itpn_mm.acceleration.schedule import MigrationSchedule
from itpn_mm.registry import MODELS

KINDS = ('dense', 'dense', 'accelerated', 'accelerated', 'pretrained', 'pretrained', 'maskdino')


def random_config(seed: int) -> dict:
    """A config that is valid; an option is given or left out, so that defaults are tried too.

    Returns:
        `kind`, `model`, and `images` (B, 3, H, W) by their shape.
    """
    draw = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    make = dict(dense=_dense, accelerated=_accelerated, pretrained=_pretrained, maskdino=_maskdino)[
        kind
    ]
    return dict(kind=kind, **make(draw))


def options(draw: random.Random, choices: dict[str, tuple]) -> dict:
    """About half of the options, each with one of its values."""
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.5}


def _backbone(draw: random.Random, patch: int) -> dict:
    fast = draw.random() < 0.5
    heads = draw.choice((1, 2, 3))
    width = heads * draw.choice((8, 16))  # a multiple of 4 for each of the stages
    side = patch * draw.randint(1, 4)
    cfg = dict(
        type='itpn_mm.FastiTPN' if fast else 'itpn_mm.HiViT',
        arch=dict(embed_dims=width, depths=[draw.randint(1, 2) for _ in range(3)], num_heads=heads),
        img_size=draw.choice((side, (side, side))),
        patch_size=patch,
    )
    cfg |= options(
        draw,
        dict(
            stem_mlp_ratio=(1.0, 3.0),
            mlp_ratio=(0.5, 2),
            qkv_bias=(True, False),
            patch_norm=(True, False),
            use_abs_pos_emb=(True, False),
            layer_scale_init_value=(None, 0.1, 1),
            drop_rate=(0.0, 0.1),
            drop_path_rate=(0.0, 0.3),
            norm_eps=(1e-5,),
            interpolate_offset=(0.0, 0.1),
            with_cp=(True, False, [2], [0, 1]),
            frozen_stages=(-1, 0, 1, 2, 3),
        ),
    )
    if fast:
        cfg |= options(draw, dict.fromkeys(('sub_norm', 'swiglu', 'cls_token'), (True, False)))
        cfg |= options(draw, dict(rel_pos_bias=(None, 'block', 'shared', 'decoupled')))
    else:
        cfg |= options(draw, dict(rel_pos_bias=(None, 'block', 'shared', 'decomposed')))
    if cfg.get('rel_pos_bias') != 'decomposed' and draw.random() < 0.3:
        cfg['img_size'] = (side, side + patch)
    return cfg


def _neck(draw: random.Random, backbone: dict, pooled: bool = True) -> dict:
    stages, patch = backbone.get('out_indices', (0, 1, 2)), backbone['patch_size']
    strides = [patch // 4 * 2**stage for stage in stages]
    coarser = [strides[-1] * 2**k for k in range(1, 4)] if pooled else []
    chosen = [s for s in strides + coarser if draw.random() < 0.7] or strides[:1]
    width = backbone['arch']['embed_dims']
    cfg = dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=[width // 4 * 2**stage for stage in stages],
        out_channels=draw.choice((4, 12)),
        in_strides=strides,
        out_strides=chosen,
    )
    per_split = [draw.randint(0, 2) for _ in strides[1:]]
    return cfg | options(
        draw,
        dict(
            depth=(0, 1, 2, per_split),
            mlp_ratio=(1, 2.0),
            bias=(True, False),
            pool=('avg', 'max'),
            concat_inputs=(True, False) if pooled else (False,),
            norm_eps=(1e-5,),
        ),
    )


def _dense(draw: random.Random) -> dict:
    patch = draw.choice((8, 16))
    backbone = _backbone(draw, patch)
    if draw.random() < 0.3:
        first = draw.randint(0, 2)
        backbone['out_indices'] = list(range(first, draw.randint(first, 2) + 1))
    neck = _neck(draw, backbone)
    least = max(neck['out_strides'][-1], patch)  # a level needs as many pixels as its stride
    sides = [least + draw.randint(0, 40) for _ in range(2)]
    return dict(model=dict(backbone=backbone, neck=neck), images=(draw.randint(1, 2), 3, *sides))


def _accelerated(draw: random.Random) -> dict:
    cfg = _dense(draw)
    backbone = cfg['model']['backbone']
    backbone['arch']['depths'][2] = depth = draw.randint(1, 4)
    layers = sorted(draw.sample(range(depth), draw.randint(1, depth)))
    wrapper = dict(
        schedule=draw.choice((dict(every=1), dict(first=depth), dict(layers=layers))),
        window_size=draw.choice((2, 3, 5)),
    ) | options(draw, dict(ratio=(0, 0.1, 0.25, 0.5, 0.8)))
    try:
        MigrationSchedule(wrapper.get('ratio', 0.0), wrapper['schedule'], depth)
    except ValueError:  # half of the tokens is the most that can leave before a layer
        wrapper['ratio'] = 0.5
    if draw.random() < 0.7:
        wrapper |= dict(window_attention=True) | options(draw, dict(gathering=(True, False)))
        if depth > 1:
            layers = draw.sample(range(depth), draw.randint(1, depth - 1))
            wrapper |= options(draw, dict(global_layers=(layers,)))
        if backbone.get('rel_pos_bias') is None:
            kinds = (None, 'window', 'all') if wrapper.get('gathering') else (None, 'window')
            wrapper |= options(draw, dict(rel_pos_bias=kinds))
    cfg['model']['backbone'] = dict(type='itpn_mm.TokenMigration', backbone=backbone, **wrapper)
    return cfg


def _pretrained(draw: random.Random) -> dict:
    """Pixels alone, or features of an EMA teacher too; levels as the decoder reads them."""
    patch = draw.choice((8, 16))
    backbone = _backbone(draw, patch)
    neck = _neck(draw, backbone, pooled=False)
    with_features = draw.random() < 0.6
    if with_features or neck['out_strides'][-1] != patch:
        neck['out_strides'] = neck['in_strides']
    width = neck['in_channels'][-1]
    heads = draw.choice((1, 2))
    dims = 16 * heads * draw.choice((1, 2))
    grid = [draw.randint(2, 4) for _ in range(2)]
    model = dict(
        type='itpn_mm.iTPN',
        backbone=backbone,
        neck=neck,
        masking=dict(type='itpn_mm.RandomMasking') | options(draw, dict(ratio=(0.3, 0.6))),
        decoder=dict(
            type='itpn_mm.MIMDecoder',
            in_channels=neck['out_channels'],
            strides=neck['out_strides'],
            embed_dims=dims,
            depth=draw.randint(0, 2),
            num_heads=heads,
            img_size=patch * draw.randint(2, 4),
            patch_size=patch,
            **options(draw, dict(mlp_ratio=(1, 2.0), norm_eps=(1e-5,))),
        ),
        head=dict(
            type='itpn_mm.PixelReconstructionHead',
            embed_dims=dims,
            patch_size=patch,
            **options(draw, dict(norm_pix=(True, False), loss_weight=(0.5, 2))),
        ),
    )
    if with_features:
        positions = draw.choice(('masked', 'visible'))
        model['mfm_head'] = dict(
            type='itpn_mm.MFMHead',
            positions=positions,
            stage_channels=[width // 4, width // 2, width],
            strides=neck['in_strides'],
            in_channels=dims if positions == 'masked' else neck['out_channels'],
            **options(draw, dict(loss_weight=(0.3, 1))),
        )
        model['teacher'] = dict(
            type='itpn_mm.EMATeacher', **options(draw, dict(momentum=(0.9, 0.996)))
        )
    return dict(model=model, images=(draw.randint(1, 2), 3, grid[0] * patch, grid[1] * patch))


def _maskdino(draw: random.Random) -> dict:
    """Options of the head; see `tests/test_maskdino/heads.py` for the others."""
    cfg = options(
        draw,
        dict(
            num_classes=(1, 3),
            num_queries=(1, 5),
            feat_channels=(32, 64),
            out_channels=(8, 16),
            denoising=(None, dict(num_queries=4), dict(num_queries=6, noise_scale=1.0)),
            two_stage=(True, False),
            loss_cls=('ce',),
        ),
    )
    if cfg.get('two_stage', True):
        cfg |= options(draw, dict(learned_content=(True, False)))
        cfg |= options(draw, dict(box_init=('no', 'bitmask', 'mask2box')))
    sides = [32 * draw.randint(2, 3) for _ in range(2)]
    objects = [draw.randint(0, 3) for _ in range(draw.randint(1, 2))]
    return dict(model=cfg, images=(len(objects), 3, *sides), objects=objects)


def try_config(cfg: dict) -> None:
    """Build, run forward and backward; everything has to be finite and have its gradient."""
    torch.manual_seed(0)
    if cfg['kind'] == 'maskdino':
        losses, modules, idle = _run_maskdino(cfg)
    elif cfg['kind'] == 'pretrained':
        model = MODELS.build(copy.deepcopy(cfg['model']))
        if model.teacher is not None:
            model.teacher.update_parameters(model.backbone)
        losses, modules, idle = model.loss(torch.rand(cfg['images'])), dict(model=model), ()
    else:
        losses, modules, idle = _run_dense(cfg)
    for name, loss in losses.items():
        assert loss.isfinite().all(), f'{name} is {loss}'
    sum(losses.values()).backward()
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not name.startswith(idle):
                assert parameter.grad is not None, f'{part}.{name} has no gradient'
                assert parameter.grad.isfinite().all(), f'{part}.{name}: gradient is not finite'


def _run_dense(cfg: dict) -> tuple[dict[str, Tensor], dict[str, nn.Module], tuple[str, ...]]:
    model = copy.deepcopy(cfg['model'])
    backbone, neck = MODELS.build(model['backbone']), MODELS.build(model['neck'])
    images = torch.rand(cfg['images'])
    maps = neck(backbone(images))
    padded = [-side % backbone.patch_size + side for side in images.shape[2:]]
    losses = {}
    for stride, channels, x in zip(neck.out_strides, neck.level_channels, maps, strict=True):
        wanted = (len(images), channels, *(side // stride for side in padded))
        assert x.shape == wanted, f'level {stride} is {tuple(x.shape)} instead of {wanted}'
        losses[f'level {stride}'] = (x * torch.randn_like(x)).mean()
    return losses, dict(backbone=backbone, neck=neck), _idle(backbone)


def _idle(backbone: nn.Module) -> tuple[str, ...]:
    """What comes after the last stage that is returned: it runs and goes nowhere."""
    last = max(backbone.out_indices)
    names = [(f'stages.{stage}.', f'merges.{stage - 1}.') for stage in range(last + 1, 3)]
    later = ('pos_embed', 'cls_token', 'rel_pos', 'acceleration') if last < 2 else ()
    return (*(name for pair in names for name in pair), *later)


def _run_maskdino(cfg: dict) -> tuple[dict[str, Tensor], dict[str, nn.Module], tuple[str, ...]]:
    from ..test_maskdino.heads import make_maps, make_target, tiny_head

    head = tiny_head(**copy.deepcopy(cfg['model']))
    size, num_classes = cfg['images'][2:], cfg['model'].get('num_classes', 3)
    targets = [make_target(count, size, num_classes) for count in cfg['objects']]
    maps = make_maps(len(targets), size)
    losses = head.losses(maps, [size] * len(targets), size, targets)
    idle = () if any(cfg['objects']) else ('predictor.label_embed', 'predictor.denoiser')
    return losses, dict(head=head), idle


def smallest(cfg: dict, fails: Callable[[dict], str | None]) -> dict:
    """Leave out one option after the other as long as `cfg` fails in the same way."""
    wanted = fails(cfg)
    again = True
    while again:
        again = False
        for path in list(_paths(cfg['model'])):
            smaller = copy.deepcopy(cfg)
            owner = smaller['model']
            for key in path[:-1]:
                owner = owner[key]
            del owner[path[-1]]
            if fails(smaller) == wanted:
                cfg, again = smaller, True
                break
    return cfg


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    if isinstance(value, dict):
        for key, member in value.items():
            if key == 'arch':  # the default one is large
                continue
            yield (*path, key)
            yield from _paths(member, (*path, key))
