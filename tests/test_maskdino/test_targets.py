"""What the heads of mmdet and mmseg make of their annotations."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData

from itpn_mm.detection.maskdino import MaskDINOHead
from itpn_mm.maskdino.targets import Target

from .heads import head_options, make_maps, randomise, total

THINGS, STUFF, SIZE, PADDED = 2, 2, (56, 64), (64, 96)


def detection_head(**options: object) -> MaskDINOHead:
    return randomise(MaskDINOHead(THINGS, STUFF, **head_options(**options))).train()


def objects_of(masks: np.ndarray, labels: list[int]) -> InstanceData:
    return InstanceData(
        labels=torch.tensor(labels, dtype=torch.long),
        masks=BitmapMasks(masks, *masks.shape[1:]),
        bboxes=torch.rand(len(labels), 4),  # not looked at
    )


def sample_of(objects: InstanceData, regions: torch.Tensor | None = None) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(img_shape=SIZE, batch_input_shape=PADDED))
    sample.gt_instances = objects
    if regions is not None:
        sample.gt_sem_seg = PixelData(sem_seg=regions[None])
    return sample


def rectangles(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """Masks of the padded batch."""
    masks = np.zeros((len(corners), *PADDED), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = 1
    return masks


def test_instances():
    """Boxes are of the masks; a mask without a pixel, or with all of them in padding, is left."""
    masks = rectangles((8, 14, 24, 42), (3, 3, 3, 3), (70, 2, 80, 9), (0, 0, 80, 64))
    objects = objects_of(masks, [1, 0, 0, 0])
    target = detection_head()._target(sample_of(objects), SIZE, PADDED)
    assert target.labels.tolist() == [1, 0]
    assert target.masks.dtype == torch.bool
    assert torch.equal(target.masks, torch.tensor(masks[[0, 3], :56, :64]).bool())
    wanted = [[16 / 64, 28 / 56, 16 / 64, 28 / 56], [0.5, 0.5, 1, 1]]
    torch.testing.assert_close(target.boxes, torch.tensor(wanted))
    polygons = PolygonMasks([[np.array([8, 14, 24, 14, 24, 42, 8, 42.0])]], *SIZE)
    objects = InstanceData(labels=torch.tensor([1]), masks=polygons)
    polygon = detection_head()._target(sample_of(objects), SIZE, PADDED)
    torch.testing.assert_close(polygon.boxes, target.boxes[:1], rtol=0, atol=0.02)


@pytest.mark.parametrize('masks', [rectangles(), rectangles((3, 3, 3, 3))])
def test_no_instances(masks):
    target = detection_head()._target(sample_of(objects_of(masks, [0] * len(masks))), SIZE, PADDED)
    assert len(target) == 0
    assert target.boxes.shape == (0, 4)
    assert target.masks.shape == (0, *SIZE)


def test_panoptic():
    """Things from instances; regions from the map, where things and 255 are none of them."""
    regions = torch.full(PADDED, 255)
    regions[:56, :64] = 2
    regions[10:20, 10:30] = 1  # of a thing
    regions[:5, :64] = 3
    regions[56:] = 3  # in the padding
    masks = rectangles((10, 10, 30, 20))
    target = detection_head()._target(sample_of(objects_of(masks, [1]), regions), SIZE, PADDED)
    assert sorted(target.labels.tolist()) == [1, 2, 3]
    by_label = dict(zip(target.labels.tolist(), target.masks, strict=True))
    assert torch.equal(by_label[3], regions[:56, :64] == 3)
    assert torch.equal(by_label[2], regions[:56, :64] == 2)
    assert by_label[1].sum() == 200
    box = target.boxes[target.labels.tolist().index(3)]
    torch.testing.assert_close(box, torch.tensor([0.5, 2.5 / 56, 1, 5 / 56]))
    only = detection_head()._target(sample_of(objects_of(masks[:0], []), regions), SIZE, PADDED)
    assert sorted(only.labels.tolist()) == [2, 3]


def test_crowds_take_no_part():
    head = detection_head(denoising=None)
    maps, runs = make_maps(1, PADDED), []
    for with_crowd in (False, True):
        sample = sample_of(objects_of(rectangles((8, 14, 24, 42)), [1]))
        if with_crowd:
            sample.ignored_instances = objects_of(rectangles((0, 0, 60, 50)), [0])
        torch.manual_seed(0)
        runs.append(head.loss(maps, [sample]))
    assert runs[0] == runs[1]


@pytest.mark.parametrize('stuff_boxes', [True, False])
def test_losses_of_panoptic_segmentation(stuff_boxes):
    """Regions have boxes or not."""
    head = detection_head(stuff_boxes=stuff_boxes, denoising=None)
    assert head.num_classes == THINGS + STUFF
    regions = torch.full(PADDED, 255)
    regions[:56, :64] = 2
    losses = head.loss(make_maps(1, PADDED), [sample_of(objects_of(rectangles(), []), regions)])
    total(losses).backward()
    assert (losses['loss_mask'] > 0) and (losses['loss_bbox'] > 0) == stuff_boxes


def test_classes_of_a_map():
    """One object for each class that is there, without what is to be ignored."""
    pytest.importorskip('mmseg')
    from mmseg.structures import SegDataSample

    from itpn_mm.segmentation.maskdino import MaskDINODecodeHead

    head = randomise(MaskDINODecodeHead(4, **head_options(num_queries=3))).train()
    labels = torch.full(PADDED, 255, dtype=torch.uint8)
    labels[:56, :64] = 3
    labels[7:14, 16:32] = 0
    labels[20:30, 20:30] = 255
    target = head._target(labels, SIZE, PADDED)
    assert target.labels.tolist() == [0, 3]
    assert target.labels.dtype == torch.long
    assert torch.equal(target.masks, torch.stack([labels[:56, :64] == k for k in (0, 3)]))
    torch.testing.assert_close(target.boxes[0], torch.tensor([24 / 64, 10.5 / 56, 0.25, 7 / 56]))
    torch.testing.assert_close(target.boxes[1], torch.tensor([0.5, 0.5, 1, 1]))

    nothing = torch.full_like(labels, 255)
    assert len(head._target(nothing, SIZE, PADDED)) == 0
    samples = []
    for values in (labels, nothing):
        sample = SegDataSample(metainfo=dict(img_shape=SIZE))
        sample.gt_sem_seg = PixelData(data=values[None])
        samples.append(sample)
    losses = head.loss(make_maps(2, PADDED), samples, {})
    total(losses).backward()
    assert all(p.grad is not None for p in head.parameters())


def test_ignored_label_may_be_another():
    pytest.importorskip('mmseg')
    from itpn_mm.segmentation.maskdino import MaskDINODecodeHead

    head = MaskDINODecodeHead(4, ignore_index=2, **head_options(num_queries=3))
    assert head._target(torch.tensor([[0, 2], [3, 2]]), (2, 2), (2, 2)).labels.tolist() == [0, 3]


def test_target_of_no_masks():
    target = Target.from_masks(torch.zeros(0).long(), torch.zeros(0, 4, 6).bool())
    assert len(target) == 0 and target.boxes.shape == (0, 4)
