"""Two lines put backbone and pyramid into any stock detector: eleven of them, and the lines."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from itpn_mm.engine import check_model_fits
from itpn_mm.hosts import is_installed

from .tiny_configs import _shrink_acceleration, _shrink_model, draw_picture

CONFIG = """_base_ = '{base}'

from itpn_mm.recipes import layer_wise_adamw, swap_in

model = swap_in(_base_.model, {arguments})
optim_wrapper = layer_wise_adamw({trunk!r})
custom_hooks = [dict(type='itpn_mm.PreflightHook')]
"""
STOCK = {
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'atss': 'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'cascade-rcnn': 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'dino': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former': 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'rtmdet': 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
    'rotated-retinanet': (
        'mmrotate::rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
    ),
    'roi-transformer': 'mmrotate::roi_trans/roi-trans-le90_r50_fpn_1x_dota.py',
    's2anet': 'mmrotate::s2anet/s2anet-le135_r50_fpn_1x_dota.py',
}
STRIDES = {
    'faster-rcnn': (4, 8, 16, 32, 64),
    'cascade-rcnn': (4, 8, 16, 32, 64),
    'roi-transformer': (4, 8, 16, 32, 64),
    'dino': (8, 16, 32, 64),
    'mask2former': (4, 8, 16, 32),
    'rtmdet': (8, 16, 32),
}
STRIDES = {name: STRIDES.get(name, (8, 16, 32, 64, 128)) for name in STOCK}
SIDES = dict(dino=128)  # of the pictures
SIDE = 256  # of the others: anchors of stride 16 lie inside
DIVISOR = 8  # of all widths
# Sizes of what has no width, where they are larger.
LIMITS = dict(
    num_layers=2,
    num_queries=20,
    num_dn_queries=4,
    num_points=64,
    nms_pre=20,
    max_per_img=10,
    max_per_image=10,
    score_thr=0.0,
)


def write(tmp_path: Path, name: str, trunk: str = 'fastitpn-base', **arguments: Any) -> Path:
    """A config as a user writes it."""
    base = STOCK[name]
    if not is_installed(base.partition('::')[0]):
        pytest.skip(f'{base} is of a package that is not installed')
    shown = ', '.join([repr(trunk), *(f'{key}={value!r}' for key, value in arguments.items())])
    path = tmp_path / f'{name}.py'
    path.write_text(CONFIG.format(base=base, arguments=shown, trunk=trunk))
    return path


def shrink(cfg: Config, name: str) -> ConfigDict:
    """The model at reduced width, for pictures of `SIDE`."""
    # DINO of mmdet on one of the two stacks takes queries of 256 channels only.
    divisor = 1 if name == 'dino' else DIVISOR
    model = ConfigDict(limit(_shrink_model(cfg.model.to_dict(), divisor)))
    if name == 'mask2former':
        model.data_preprocessor.batch_augments[0].size = (SIDE, SIDE)
    if model.backbone.type == 'itpn_mm.TokenMigration':
        _shrink_acceleration(model.backbone)
    return model


def limit(value: Any, key: str = '') -> Any:
    if isinstance(value, dict):
        return {k: limit(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(limit(v) for v in value)
    return min(value, LIMITS[key]) if key in LIMITS else value


def make_batch(name: str) -> dict:
    """Two pictures with two objects each, as the data loader of a detector gives them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    side = SIDES.get(name, SIDE)
    corners = torch.tensor([[0.08, 0.1, 0.36, 0.3], [0.24, 0.25, 0.9, 0.8]]) * side
    objects = InstanceData(bboxes=corners)
    if STOCK[name].startswith('mmrotate'):
        from mmrotate.structures.bbox import RotatedBoxes

        sizes, centres = corners[:, 2:] - corners[:, :2], (corners[:, :2] + corners[:, 2:]) / 2
        angles = torch.tensor([[0.3], [-0.5]])
        objects.bboxes = RotatedBoxes(torch.cat([centres, sizes, angles], dim=1))
    if name == 'mask2former':
        masks = np.zeros((2, side, side), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, corners.int().tolist()):
            mask[top:bottom, left:right] = 1
        objects.masks = BitmapMasks(masks, side, side)
    samples, images = [], []
    for i in range(2):
        shape = (side, side)
        meta = dict(img_id=i, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = copy.deepcopy(objects)
        sample.gt_instances.labels = torch.tensor([i, 3])
        samples.append(sample)
        picture = np.array(draw_picture(side, side, seed=i))
        images.append(torch.from_numpy(picture).permute(2, 0, 1))
    return dict(inputs=images, data_samples=samples)


def train_step(model: torch.nn.Module, batch: dict, wrapper: Any) -> tuple[dict, dict]:
    """Losses of a step, and the size of the gradient of each parameter that has one."""
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: gradients.update({name: p.grad.abs().sum()})
            )
    return model.train().train_step(batch, wrapper), gradients


def build(cfg: Config, name: str) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return revert_sync_batchnorm(MODELS.build(shrink(cfg, name)))


@pytest.mark.parametrize('name', STOCK)
def test_two_lines_swap_it_in(name, tmp_path):
    cfg = Config.fromfile(write(tmp_path, name, drop_path_rate=0.1))
    assert cfg.model.backbone.type == 'itpn_mm.FastiTPN'
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.model.neck.type == 'itpn_mm.TransformerPyramidNeck'
    assert cfg.model.neck.out_strides == STRIDES[name]
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb is True  # that of FCOS, for Caffe, is not, nor RTMDet's
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]

    model = build(cfg, name)
    check_model_fits(model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        losses, gradients = train_step(model, make_batch(name), wrapper)
        assert len(losses) > 1
        assert all(loss.isfinite() for loss in losses.values())
        assert all(gradient.isfinite() for gradient in gradients.values())
        for key, _ in model.named_parameters():
            if key.startswith(('backbone.', 'neck.')):
                assert gradients[key] > 0, key
        assert len({group['lr'] for group in wrapper.optimizer.param_groups}) == 3

        with torch.no_grad():
            results = model.eval().test_step(make_batch(name))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert len(found) > 0 and found.scores.isfinite().all()
        boxes = getattr(found.bboxes, 'tensor', found.bboxes)
        assert boxes.isfinite().all()
        assert boxes.shape[1] == (5 if cfg.default_scope == 'mmrotate' else 4)


@pytest.mark.parametrize('name', ['retinanet', 'roi-transformer'])
def test_an_accelerated_one(name, tmp_path):
    arguments = dict(trunk='hivit-base', accelerate='gathering-hrpe', with_cp=True)
    cfg = Config.fromfile(write(tmp_path, name, **arguments))
    assert cfg.model.backbone.backbone.type == 'itpn_mm.HiViT'
    model = build(cfg, name)
    check_model_fits(model)
    assert model.backbone.acceleration is not None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        losses, gradients = train_step(model, make_batch(name), wrapper)
    assert all(loss.isfinite() for loss in losses.values())
    late = 'backbone.acceleration.gathering_token'  # until their scales have left 0
    parts = {key for key in gradients if key.startswith(('backbone.', 'neck.'))}
    assert {key for key in parts if not gradients[key] > 0} == {late}


# What a user may get wrong, on top of the two lines; widths are an eighth.
MISFITS = {
    'retinanet-strides': (
        'retinanet',
        dict(strides=(4, 8, 16, 32, 64)),
        {},
        r'`bbox_head\.anchor_generator\.strides` is \(8, 16, 32, 64, 128\), but neck '
        r'TransformerPyramidNeck gives maps of \(4, 8, 16, 32, 64\)',
    ),
    'retinanet-channels': (
        'retinanet',
        {},
        {'model.bbox_head.in_channels': 512},
        r'`bbox_head\.in_channels` is \(64, .*but neck TransformerPyramidNeck gives .*\(32, ',
    ),
    'dino-levels': (
        'dino',
        dict(strides=(4, 8, 16, 32, 64)),
        {},
        r'`num_feature_levels` is 4, but neck TransformerPyramidNeck gives 5 maps',
    ),
    'dino-channels': (
        'dino',
        dict(neck=dict(out_channels=128)),
        {},
        r'embed_dims` is \(256, .*but neck TransformerPyramidNeck gives maps of \(128, ',
    ),
    'mask2former-channels': (
        'mask2former',
        {},
        {'model.panoptic_head.in_channels': [256, 512, 1024, 2048]},
        r'`panoptic_head\.in_channels` is \(32, 64, 128, 256\), but neck Transformer.*\(32, 32, ',
    ),
    'mask2former-strides': (
        'mask2former',
        dict(strides=(8, 16, 32, 64)),
        {},
        r'`panoptic_head\.strides` is \(4, 8, 16, 32\), but neck Transformer.*\(8, 16, 32, 64\)',
    ),
    'rtmdet-strides': (
        'rtmdet',
        dict(strides=(4, 8, 16)),
        {},
        r'`bbox_head\..*strides` is \(8, 16, 32\), but neck Transformer.* \(4, 8, 16\)',
    ),
    's2anet-strides': (
        's2anet',
        dict(strides=(4, 8, 16, 32, 64)),
        {},
        r'`bbox_head_init\..*strides` is \(8, 16, 32, 64, 128\), but neck .*\(4, 8, 16, 32, 64\)',
    ),
    'roi-transformer-levels': (
        'roi-transformer',
        {},
        {'model.roi_head.bbox_roi_extractor.1.featmap_strides': [8, 16, 32, 64]},
        r'`roi_head\.bbox_roi_extractor\.1\.featmap_strides` is \(8, 16, 32, 64\), but neck ',
    ),
}


@pytest.mark.parametrize('case', MISFITS)
def test_misfits_are_named_before_training(case, tmp_path):
    name, arguments, changes, message = MISFITS[case]
    cfg = Config.fromfile(write(tmp_path, name, **arguments))
    cfg.merge_from_dict(changes)
    model = build(cfg, name)
    with pytest.raises(ValueError, match=message) as info:
        check_model_fits(model)
    assert '\n' not in str(info.value)
