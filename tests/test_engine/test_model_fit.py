"""Parts of real models that do not fit: both sides named, before anything runs."""

from functools import reduce
from operator import getitem

import pytest
from torch import nn

from itpn_mm.engine import check_model_fits

from . import models

BACKBONE = models.backbone_cfg('tiny')
FPN = dict(type='FPN', in_channels=[4, 8, 16], out_channels=8, num_outs=5)


def detector(neck: dict | None = None, backbone: dict = BACKBONE, **changes) -> nn.Module:
    """The Mask R-CNN for strides 4 to 64, with settings changed by dotted key."""
    cfg = models.detector_cfg()
    for key, value in changes.items():
        *path, last = key.split('.')
        reduce(getitem, path, cfg)[last] = value
    return models.detector(backbone, neck or models.neck_cfg(), cfg)


def fails(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        check_model_fits(model)
    assert '\n' not in str(info.value)


def test_models_that_fit():
    check_model_fits(detector())
    check_model_fits(detector(neck=FPN))
    check_model_fits(models.rotated_detector(BACKBONE, models.neck_cfg()))
    check_model_fits(models.segmentor(BACKBONE, models.neck_cfg()))
    check_model_fits(models.classifier(BACKBONE))


@pytest.mark.parametrize('cascade', [False, True])
def test_stock_detectors_fit(cascade):
    """What stock parts say in their own way is not taken for a misfit."""
    cfg = models.detector_cfg()
    resnet = dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3))
    if cascade:
        cfg.type = 'CascadeRCNN'
        cfg.roi_head.update(
            type='CascadeRoIHead',
            num_stages=2,
            stage_loss_weights=[1, 0.5],
            bbox_head=[cfg.roi_head.bbox_head] * 2,
        )
        cfg.train_cfg.rcnn = [cfg.train_cfg.rcnn] * 2
    model = models.detector(resnet, dict(FPN, in_channels=[64, 128, 256, 512]), cfg)
    check_model_fits(model)
    if cascade:
        model.roi_head.bbox_head[1].in_channels = 16
        fails(model, r'`roi_head\.bbox_head\.1\.in_channels` is 16, but `roi_head\.bbox_roi_extra')


def test_neck_takes_other_channels_than_the_backbone_gives():
    message = r'`neck\.in_channels` is \(4, 8, 8\), but backbone HiViT gives maps of \(4, 8, 16\)'
    fails(detector(models.neck_cfg(in_channels=(4, 8, 8))), message)
    fails(detector(dict(FPN, in_channels=[4, 8, 8])), message)


def test_neck_takes_other_levels_than_the_backbone_gives():
    fails(
        detector(backbone=dict(BACKBONE, out_indices=(1, 2))),
        r'`neck\.in_channels` is \(4, 8, 16\), but .* \(8, 16\) \(channels\)',
    )
    fails(
        detector(models.neck_cfg(in_strides=(8, 16, 32), out_strides=(8, 16, 32, 64, 128))),
        r'`neck\.in_strides` is \(8, 16, 32\), but backbone HiViT gives maps of \(4, 8, 16\)',
    )


def test_rpn_takes_other_channels_than_the_neck_gives():
    fails(
        detector(models.neck_cfg(out_channels=12)),
        r'`rpn_head\.in_channels` is \(8, 8, 8, 8, 8\), but neck TransformerPyramidNeck gives maps '
        r'of \(12, 12, 12, 12, 12\)',
    )


def test_anchors_have_other_strides_than_the_neck_gives():
    message = r'`rpn_head\.anchor_generator\.strides` is \(4, 8, 16, 32, 64\), but neck '
    fails(
        detector(models.neck_cfg(out_strides=(4, 8, 16, 32))),
        message + r'TransformerPyramidNeck gives maps of \(4, 8, 16, 32\)',
    )
    fails(
        detector(models.neck_cfg(out_strides=(8, 16, 32, 64, 128))),
        message + r'TransformerPyramidNeck gives maps of \(8, 16, 32, 64, 128\)',
    )
    fails(detector(dict(FPN, num_outs=4)), r'`rpn_head.* 5 levels, but neck FPN gives 4 maps')


def test_roi_extractors():
    strides = 'roi_head.bbox_roi_extractor.featmap_strides'
    fails(
        detector(**{strides: [8, 16, 32]}),
        r'`roi_head\.bbox_roi_extractor\.featmap_strides` is \(8, 16, 32\), but .* \(4, 8, 16\)',
    )
    fails(
        detector(**{strides: [4, 8, 16, 32, 64, 128]}),
        r'featmap_strides` \(4, 8, 16, 32, 64, 128\) names 6 maps, but .* gives 5',
    )
    fails(
        detector(**{'roi_head.mask_roi_extractor.out_channels': 16}),
        r'`roi_head\.mask_roi_extractor\.out_channels` is \(16, 16, 16, 16\), but .*\(8, 8, 8, 8\)',
    )
    fails(
        detector(**{'roi_head.bbox_head.in_channels': 16}),
        r'`roi_head\.bbox_head\.in_channels` is 16, but .*bbox_roi_extractor\.out_channels` is 8',
    )


def test_detector_without_a_neck_is_compared_with_the_backbone():
    model = detector()
    model.neck = None
    fails(model, r'`rpn_head\.in_channels` is \(8, 8, 8\), but backbone HiViT gives .*\(4, 8, 16\)')


def test_single_stage_head():
    cfg = dict(
        type='mmdet.RetinaNet',
        backbone=BACKBONE,
        neck=models.neck_cfg(),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', ratios=[1.0], scales=[4], strides=[8, 16, 32, 64, 128]
            ),
        ),
    )
    fails(
        models.build('mmdet', cfg),
        r'`bbox_head\.anchor_generator\.strides` is \(8, 16, 32, 64, 128\), but .*'
        r'\(4, 8, 16, 32, 64\)',
    )


def test_rotated_detector():
    cfg = models.rotated_cfg()
    cfg.roi_head.bbox_roi_extractor.featmap_strides = [8, 16, 32, 64]
    model = models.rotated_detector(BACKBONE, models.neck_cfg(), cfg)
    fails(model, r'`roi_head\.bbox_roi_extractor\.featmap_strides` is \(8, 16, 32, 64\), but')


def test_decode_heads():
    neck = models.neck_cfg()
    fails(
        models.segmentor(BACKBONE, neck, dict(in_channels=[8, 8, 8, 16])),
        r'`decode_head\.in_channels` is \(8, 8, 8, 16\), but .* \(8, 8, 8, 8\) '
        r'\(channels at \[0, 1, 2, 3\]\)',
    )
    fails(
        models.segmentor(BACKBONE, models.neck_cfg(out_strides=(4, 8, 16))),
        r'`decode_head\.in_index` is \[0, 1, 2, 3\], but .* gives only 3 maps',
    )
    model = models.segmentor(BACKBONE, neck)
    model.auxiliary_head.in_channels = 4
    fails(model, r'`auxiliary_head\.in_channels` is 4, but .* gives maps of 8 \(channels at 2\)')
    model.auxiliary_head = nn.ModuleList([model.auxiliary_head])
    fails(model, r'`auxiliary_head\.0\.in_channels` is 4')


def test_decode_head_on_maps_of_different_widths():
    """A pyramid that adds the backbone's maps to its own, and a head that concatenates them."""
    neck = models.neck_cfg(concat_inputs=True, out_strides=(4, 8, 16, 32))
    model = models.segmentor(BACKBONE, neck, dict(in_channels=[12, 16, 24, 24]))
    model.auxiliary_head = None
    check_model_fits(model)
    head = dict(
        type='mmseg.FCNHead',
        in_channels=[12, 16],
        in_index=[0, 1],
        input_transform='resize_concat',
        channels=8,
        num_classes=3,
    )
    model.decode_head = models.build('mmseg', head)
    check_model_fits(model)
    model.decode_head.in_index = [1, 2]
    fails(model, r'`decode_head\.in_channels` is 28, but .* gives maps of 40')


def test_classifier_head():
    head = dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=8)
    fails(
        models.classifier(BACKBONE, head=head),
        r'`head\.in_channels` is 8, but backbone HiViT gives maps of 16 \(channels, last\)',
    )


def test_classifier_neck():
    neck = dict(type='itpn_mm.GlobalAveragePoolNorm', in_channels=8)
    fails(
        models.classifier(BACKBONE, neck=neck),
        r'`neck\.in_channels` is 8, but backbone HiViT gives maps of 16 \(channels, last\)',
    )


def test_single_stage_mask_head_is_not_compared():
    """The one of CondInst takes the output of a branch of its own."""
    model = detector()
    model.mask_head = nn.Conv2d(99, 8, 1)
    check_model_fits(model)


def test_necks_in_a_row():
    model = detector()
    dyhead = nn.Identity()
    model.neck = nn.Sequential(model.neck, dyhead)
    model.rpn_head.in_channels = 99
    check_model_fits(model)  # what DyHead-like necks give is unknown
    model.neck[0].in_channels = (1, 2, 3)
    fails(model, r'`neck\.in_channels` is \(1, 2, 3\)')


def test_model_of_unknown_parts_passes():
    check_model_fits(nn.Linear(2, 2))
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 8, 1)  # its `out_channels` is an int
    model.neck = nn.Conv2d(3, 8, 1)
    check_model_fits(model)
