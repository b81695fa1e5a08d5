"""iTPNDistill: what it may see, what it learns from, parts that do not fit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmpretrain.structures import DataSample

from itpn_mm.pretraining.distill_heads import cosine, smooth_l1
from itpn_mm.registry import MODELS

STAGES, PYRAMID, TARGET = (8, 16, 32), 12, 20


@MODELS.register_module(force=True)
class ToyTeacher(nn.Module):
    """Patch means of the view, repeated over the channels."""

    def __init__(self, embed_dims=TARGET, patch_size=8, img_size=32):
        super().__init__()
        self.embed_dims, self.patch_size, self.img_size = embed_dims, patch_size, img_size
        self.grid = (img_size // patch_size,) * 2

    def forward(self, images):
        x = F.avg_pool2d(images.mean(1, keepdim=True), self.patch_size).flatten(1)
        return x.unsqueeze(-1) * torch.linspace(-1, 1, self.embed_dims)


def build(**overrides):
    """A small model; `overrides` replace values by dotted name, written with two underscores."""
    cfg = Config(
        dict(
            type='itpn_mm.iTPNDistill',
            backbone=dict(
                type='itpn_mm.HiViT',
                arch=dict(embed_dims=STAGES[-1], depths=(1, 1, 8), num_heads=2),
                img_size=64,
                rel_pos_bias='block',
                layer_scale_init_value=0.1,
                drop_path_rate=0.1,
            ),
            neck=dict(
                type='itpn_mm.TransformerPyramidNeck',
                in_channels=STAGES,
                out_channels=PYRAMID,
                out_strides=(4, 8, 16),
                depth=1,
            ),
            decoder=dict(type='itpn_mm.LevelSum', in_channels=PYRAMID, embed_dims=STAGES[-1]),
            head=dict(type='itpn_mm.CLIPDistillHead', in_channels=STAGES[-1], target_dims=TARGET),
            aux_head=dict(
                type='itpn_mm.AuxiliaryHead',
                in_channels=STAGES[-1],
                num_heads=2,
                target_dims=TARGET,
                grid=(4, 4),
            ),
            teacher=dict(type='ToyTeacher'),
        )
    )
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in overrides.items()})
    torch.manual_seed(0)
    return MODELS.build(cfg.to_dict())


FAST = dict(
    backbone=dict(
        _delete_=True,
        type='itpn_mm.FastiTPN',
        arch=dict(embed_dims=STAGES[-1], depths=(1, 1, 2), num_heads=2),
        img_size=64,
    ),
    neck__bias=True,
    aux_head=None,
    head__loss='cosine',
)


def draw_mask(batch=2, length=16, count=6):
    return torch.zeros(batch, length, dtype=torch.bool).scatter(
        1, torch.rand(batch, length).argsort(1)[:, :count], True
    )


def samples(mask, grid=(4, 4)):
    found = []
    for row in mask:
        found.append(DataSample())
        found[-1].set_field(row.view(grid).numpy().astype(np.int64), 'mask')
    return found


@pytest.mark.parametrize(
    'overrides, names',
    [({}, {'loss_distill', 'loss_aux'}), (FAST, {'loss_distill'})],
    ids=['itpn', 'fast'],
)
def test_losses_and_gradients(overrides, names):
    model, mask = build(**overrides), draw_mask()
    views = [torch.randn(2, 3, 64, 64), torch.randn(2, 3, 32, 32)]
    losses = model(views, samples(mask), mode='loss')
    assert losses.keys() == names
    target = model.teacher(views[1])
    again = model.eval().loss_of_target(views[0], mask, target)
    model.train()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert again.keys() == names and all(value > 0 for value in again.values())


def test_the_losses_are_those_of_the_paper():
    model, mask = build(**FAST).eval(), draw_mask()
    images, target = torch.randn(2, 3, 64, 64), torch.randn(2, 16, TARGET)
    levels, tapped, tokens = model.encode(images, mask)
    assert tapped is None
    pred = model.head(model.decoder(levels), tokens)
    norm = F.normalize(pred, dim=-1), F.normalize(target, dim=-1)
    expected = 1 - (norm[0] * norm[1]).sum(-1).mean()
    loss = model.loss_of_target(images, mask, target)['loss_distill']
    torch.testing.assert_close(loss, expected)
    difference = (pred - target).abs()
    huber = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    torch.testing.assert_close(smooth_l1(pred, target), huber)
    assert cosine(target, 3 * target).abs() < 1e-6


def test_masked_positions_alone_may_count():
    model, mask = build(**FAST, head__positions='masked').eval(), draw_mask()
    images, target = torch.randn(2, 3, 64, 64), torch.randn(2, 16, TARGET)
    first = model.loss_of_target(images, mask, target)['loss_distill']
    elsewhere = torch.where(mask.unsqueeze(-1), target, torch.randn_like(target))
    assert torch.equal(first, model.loss_of_target(images, mask, elsewhere)['loss_distill'])
    assert not torch.equal(first, model.loss_of_target(images, mask, -target)['loss_distill'])


@pytest.mark.parametrize('overrides', [{}, FAST], ids=['itpn', 'fast'])
@pytest.mark.parametrize('mask_laterals', [True, False])
@torch.no_grad()
def test_masked_patches_are_not_seen(overrides, mask_laterals):
    """Unless the released leak is asked for."""
    model, mask = build(**overrides, mask_laterals=mask_laterals).eval(), draw_mask()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 64, 64)
    pixels = mask.view(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    others = torch.where(pixels, torch.randn_like(images), images)
    (first, tapped, _), (second, tapped_too, _) = (model.encode(x, mask) for x in (images, others))
    for stride in (4, 8, 16):
        same = torch.equal(first[stride], second[stride])
        assert same == (mask_laterals or stride == 16)
    if tapped is not None:
        assert torch.equal(tapped, tapped_too)


@torch.no_grad()
def test_the_sum_of_levels_is_by_patch():
    """A whole image and its patches in one column give the same tokens."""
    model, images = build(**FAST).eval(), torch.randn(2, 3, 48, 64)
    keep = torch.arange(12).expand(2, -1)
    dense, column = (
        model.decoder(model.neck.forward_levels(model.backbone.forward_stages(images, ids)))
        for ids in (None, keep)
    )
    torch.testing.assert_close(dense, column, atol=1e-5, rtol=1e-4)


def test_the_auxiliary_branch_drops_paths_as_the_blocks_beside_it():
    model = build()
    rates = [block.drop_path.rate for block in model.backbone.stages[2]]
    assert [block.drop_path.rate for block in model.aux_head.blocks] == rates[6:8]
    assert model.aux_head.blocks[0].norm1.eps == 1e-5


def test_without_teacher_it_does_not_train():
    model = build(teacher=None)
    with pytest.raises(RuntimeError, match=r'`teacher` is None: a model without a teacher'):
        model.loss([torch.randn(1, 3, 64, 64)] * 2, samples(draw_mask(1)))


@pytest.mark.parametrize(
    'overrides, message',
    [
        (dict(neck__in_channels=(8, 16, 24)), r'`neck\.in_channels` must be equal to `backbone\.'),
        (dict(decoder__in_channels=16), r'`decoder\.in_channels` must be equal to `neck\.'),
        (dict(head__in_channels=16), r'`head\.in_channels` must be equal to `decoder\.embed_dims`'),
        (dict(teacher__embed_dims=24), r'`head\.target_dims` must be equal to `teacher\.embed_d'),
        (dict(aux_head__target_dims=24), r'`aux_head\.target_dims` must be equal to `head\.'),
        (
            dict(teacher__img_size=48),
            r'`backbone` has 4 x 4 and `teacher` 6 x 6 .*: set teacher\.img_size=32, and '
            r'`second_size` in the pipeline, or backbone\.img_size=96',
        ),
        (dict(backbone__arch__depths=(1, 1, 4)), r'`aux_head` reads stage 3 after block 3'),
        (dict(head__loss='l2'), r"`loss` of CLIPDistillHead must be one of .* but got 'l2'"),
        (dict(head__positions='some'), r"`positions` of CLIPDistillHead must be .* 'some'"),
        (dict(aux_head__tap=1.0), r'after block 8 and has 2 blocks'),
    ],
)
def test_parts_that_do_not_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(**overrides)


def test_masks_of_another_grid():
    model = build()
    with pytest.raises(
        ValueError, match=r'masks must be one for each of 1 images of 4 x 4 patches'
    ):
        model.encode(torch.randn(1, 3, 64, 64), torch.zeros(1, 9, dtype=torch.bool))
