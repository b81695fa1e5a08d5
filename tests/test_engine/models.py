"""Models of every host package around our backbones and pyramid, narrow but of the real depths.

Names and numbers of parameters depend on the depths alone, so narrow models have all of them.
"""

import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from itpn_mm.backbones import FastiTPN, HiViT

WIDTH = 16  # of stage 3


def _narrow(depths: tuple[int, int, int]) -> dict:
    return dict(embed_dims=WIDTH, depths=depths, num_heads=1)


def backbone_cfg(arch: str = 'base', **kwargs) -> dict:
    """Config of a narrow HiViT with the depths of `arch`."""
    depths = HiViT.arch_zoo[arch]['depths']
    return dict(type='itpn_mm.HiViT', arch=_narrow(depths), img_size=64, **kwargs)


def fast_backbone_cfg(arch: str = 'base', **kwargs) -> dict:
    """Config of a narrow FastiTPN with the depths of `arch`."""
    depths = FastiTPN.arch_zoo[arch]['depths']
    return dict(backbone_cfg(**kwargs), type='itpn_mm.FastiTPN', arch=_narrow(depths))


def neck_cfg(**kwargs) -> dict:
    """Config of a pyramid with 8 channels that fits `backbone_cfg`."""
    channels = (WIDTH // 4, WIDTH // 2, WIDTH)
    neck = dict(type='itpn_mm.TransformerPyramidNeck', in_channels=channels, out_channels=8)
    return {**neck, **kwargs}


def build(scope: str, cfg: dict) -> nn.Module:
    """Build `cfg` as a config with `default_scope = scope` would."""
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(cfg)


def classifier(backbone: dict, **kwargs) -> nn.Module:
    """An ImageClassifier of mmpretrain."""
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=WIDTH),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=WIDTH),
    )
    return build('mmpretrain', {**cfg, **kwargs})


def detector_cfg() -> dict:
    """The stock Mask R-CNN of mmdet with narrow heads, without backbone and neck."""
    pytest.importorskip('mmdet')
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    roi_head = cfg.roi_head
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = 8
    roi_head.bbox_head.update(in_channels=8, fc_out_channels=8)
    roi_head.mask_head.update(in_channels=8, conv_out_channels=8)
    return cfg


def detector(backbone: dict, neck: dict | None, cfg: dict | None = None) -> nn.Module:
    """A Mask R-CNN of mmdet."""
    return build('mmdet', {**(cfg or detector_cfg()), 'backbone': backbone, 'neck': neck})


def rotated_cfg() -> dict:
    """The stock Oriented R-CNN of mmrotate with narrow heads, without backbone and neck."""
    pytest.importorskip('mmrotate')
    cfg = get_config('mmrotate::oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py').model
    cfg.rpn_head.update(in_channels=8, feat_channels=8)
    cfg.roi_head.bbox_roi_extractor.out_channels = 8
    cfg.roi_head.bbox_head.update(in_channels=8, fc_out_channels=8)
    return cfg


def rotated_detector(backbone: dict, neck: dict | None, cfg: dict | None = None) -> nn.Module:
    """An Oriented R-CNN of mmrotate."""
    return build('mmrotate', {**(cfg or rotated_cfg()), 'backbone': backbone, 'neck': neck})


def segmentor(backbone: dict, neck: dict | None, head: dict | None = None) -> nn.Module:
    """An EncoderDecoder of mmseg with an UPerHead on four maps and an FCNHead on one."""
    common = dict(channels=8, num_classes=3, align_corners=False)
    cfg = dict(
        type='mmseg.EncoderDecoder',
        backbone=backbone,
        neck=neck,
        decode_head=dict(
            type='mmseg.UPerHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3], **common
        ),
        auxiliary_head=dict(type='mmseg.FCNHead', in_channels=8, in_index=2, **common),
    )
    cfg['decode_head'].update(head or {})
    return build('mmseg', cfg)
