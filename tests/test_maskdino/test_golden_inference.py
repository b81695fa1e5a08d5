"""What the heads make of predictions against the authors' post-processing."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures import DetDataSample
from torch import Tensor

from itpn_mm.detection.maskdino import MaskDINOFusionHead, MaskDINOHead, _to_image
from itpn_mm.maskdino.inference import class_scores, segment_all, segment_classes
from itpn_mm.maskdino.predictor import Outputs, Predictions

from .golden import assert_close, cross_entropy, load, take

pytestmark = pytest.mark.checklist('parity')

FIXTURES = ['e1_inference']
ENTRY, TENSORS = load(*FIXTURES)
SIZES, ORIGINAL = (
    [tuple(size) for size in ENTRY[name]] for name in ('image_sizes', 'original_sizes')
)
PADDED = tuple(ENTRY['padded'])
THINGS, STUFF = len(ENTRY['thing_classes']), ENTRY['num_classes'] - len(ENTRY['thing_classes'])
TINY = dict(
    in_channels=[32] * 4,
    feat_channels=32,
    pixel_decoder=dict(num_layers=0),
    transformer_decoder=dict(num_layers=0),
    mask_padding=False,
)


def outputs(kind: str) -> Outputs:
    """Outputs of the predictor; mask features have a channel for each query."""
    logits, boxes, masks = (TENSORS[f'{kind}.pred_{part}'] for part in ('logits', 'boxes', 'masks'))
    eye = torch.eye(masks.shape[1]).expand(len(masks), -1, -1)
    return Outputs(('',), Predictions(logits[None], boxes[None], eye[None]), masks)


def give(head: torch.nn.Module, kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Have the head predict what the fixture says; returns maps, which it does not look at."""
    monkeypatch.setattr(head, 'segment', lambda *_: outputs(kind))
    return [torch.zeros(len(SIZES), 32, 16 >> i, 16 >> i) for i in range(4)]


def predict(kind: str, monkeypatch: pytest.MonkeyPatch, **test_cfg: object) -> list[dict]:
    """Results of mmdet's heads."""
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=PADDED, ori_shape=original))
        for size, original in zip(SIZES, ORIGINAL, strict=True)
    ]
    head = MaskDINOHead(num_things_classes=THINGS, num_stuff_classes=STUFF, **TINY)
    fusion = MaskDINOFusionHead(
        num_things_classes=THINGS, num_stuff_classes=STUFF, test_cfg=test_cfg
    )
    maps = give(head, kind, monkeypatch)
    return fusion.predict(*head.predict(maps, samples), samples)


def check_instances(found, wanted: dict[str, Tensor]) -> None:
    order = found.scores.argsort(descending=True)
    assert_close(found.scores[order], wanted['scores'], ENTRY)
    assert torch.equal(found.labels[order], wanted['labels'].long())
    assert_close(found.bboxes[order], wanted['boxes_xyxy'], ENTRY)
    if 'masks' in wanted:
        assert torch.equal(found.masks[order], wanted['masks'] > 0)


@pytest.mark.parametrize(('name', 'mask_score'), [('instance', True), ('instance_boxfocus', False)])
def test_golden_instances(name, mask_score, monkeypatch):
    results = predict(
        'focal',
        monkeypatch,
        panoptic_on=False,
        instance_on=True,
        max_per_image=ENTRY['topk'],
        mask_score=mask_score,
    )
    for image, result in enumerate(results):
        assert set(result) == {'ins_results'}
        check_instances(result['ins_results'], take(TENSORS, f'{name}.{image}.'))


def test_golden_panoptic_and_instances(monkeypatch):
    results = predict(
        'focal', monkeypatch, panoptic_on=True, instance_on=True, max_per_image=ENTRY['topk']
    )
    for image, result in enumerate(results):
        check_instances(result['ins_results'], take(TENSORS, f'panoptic_instance.{image}.'))
        segments = TENSORS[f'panoptic.{image}.segments'].long().tolist()
        codes = {0: THINGS + STUFF} | {
            number: label + is_thing * number * INSTANCE_OFFSET
            for number, label, is_thing in segments
        }
        wanted = TENSORS[f'panoptic.{image}.map'].long()
        wanted = torch.tensor([codes[number] for number in range(len(codes))])[wanted]
        assert torch.equal(result['pan_results'].sem_seg[0], wanted)


def test_golden_segments():
    """Before mmdet's codes; and the classes of models that have instances, too."""
    for image, (size, original) in enumerate(zip(SIZES, ORIGINAL, strict=True)):
        logits = TENSORS['focal.pred_logits'][image]
        masks = _to_image(TENSORS['focal.pred_masks'][image], size, PADDED, original)
        segments, labels = segment_all(logits, masks, False, THINGS)
        assert torch.equal(segments, TENSORS[f'panoptic.{image}.map'].long())
        assert labels == TENSORS[f'panoptic.{image}.segments'][:, 1].tolist()
        scores = class_scores(logits, False, ENTRY['temperature'])
        classes = segment_classes(scores[None], masks[None])[0]
        assert_close(classes, TENSORS[f'panoptic.{image}.semantic'], ENTRY)


@pytest.mark.parametrize(
    ('name', 'temperature'),
    [('ce', 0.06), ('focal_temp', ENTRY['temperature']), ('focal_plain', None)],
)
def test_golden_classes(name, temperature, monkeypatch):
    pytest.importorskip('mmseg')
    from mmseg.models import EncoderDecoder
    from mmseg.structures import SegDataSample

    from itpn_mm.segmentation.maskdino import MaskDINODecodeHead

    num_classes = ENTRY['num_classes']
    loss = dict(loss_cls=cross_entropy(num_classes)) if name == 'ce' else {}
    head = MaskDINODecodeHead(num_classes, temperature=temperature, **loss, **TINY)
    samples = []
    for (height, width), original in zip(SIZES, ORIGINAL, strict=True):
        padding = (0, PADDED[1] - width, 0, PADDED[0] - height)
        meta = dict(img_shape=(height, width), ori_shape=original, img_padding_size=padding)
        samples.append(SegDataSample(metainfo=meta | dict(pad_shape=PADDED)))
    maps = give(head, name.split('_')[0], monkeypatch)
    scores = head.predict(maps, [sample.metainfo for sample in samples], dict(mode='whole'))
    assert scores.shape == (len(SIZES), num_classes, *PADDED)
    segmentor = SimpleNamespace(align_corners=head.align_corners)
    results = EncoderDecoder.postprocess_result(segmentor, scores, samples)
    for image, result in enumerate(results):
        assert_close(result.seg_logits.data, TENSORS[f'semantic_{name}.{image}'], ENTRY)
