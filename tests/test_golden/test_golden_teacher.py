"""The CLIP teacher against the released one; its accidental range of inputs is a configuration."""

import pytest
import torch
from mmengine.structures import BaseDataElement

from tests.golden import INDEX, assert_matches, load, relative_error, under

pytest.importorskip('mmpretrain')

from mmpretrain.models import TwoNormDataPreprocessor

from itpn_mm.pretraining import CLIPTeacher

pytestmark = pytest.mark.checklist('parity')

NAME = 't1_clip_teacher'
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('clip') / 'clip.pt'
    torch.save(under(load(NAME), 'sd/'), path)
    return str(path)


def preprocess(pixels, second_mean, second_std):
    """The teacher's view, as the data preprocessor of the shipped configs makes it."""
    preprocessor = TwoNormDataPreprocessor(
        mean=[127.5] * 3,
        std=[127.5] * 3,
        second_mean=second_mean,
        second_std=second_std,
        to_rgb=False,
    )
    data = dict(inputs=[pixels, pixels], data_samples=[BaseDataElement()])
    return preprocessor(data)['inputs'][1]


@pytest.mark.parametrize('case', INDEX[NAME]['cases'])
def test_targets(file, case):
    """At the native grid, and with resampled positions."""
    tensors = load(NAME)
    teacher = CLIPTeacher(file, img_size=int(case.split('x')[0]))
    found = teacher(tensors[f'mid/{case}/scaled'])
    assert_matches(found, tensors[f'out/{case}/target'], NAME, f'{case} target')


@pytest.mark.parametrize('case', INDEX[NAME]['cases'])
def test_released_range_of_inputs(file, case):
    """Means of 510 m - 255 and deviations of 510 s, for pixels of 0 to 255, give the teacher [0.5,
    1] in place of [0, 1], as the released loader does; the ordinary ones do not.
    """
    tensors = load(NAME)
    pixels = tensors[f'in/{case}/image01'] * 255
    teacher = CLIPTeacher(file, img_size=int(case.split('x')[0]))
    view = preprocess(pixels, [510 * m - 255 for m in MEAN], [510 * s for s in STD])
    assert_matches(view, tensors[f'mid/{case}/scaled'], NAME, f'{case} scaled')
    target = tensors[f'out/{case}/target']
    assert_matches(teacher(view), target, NAME, f'{case} target')

    ordinary = preprocess(pixels, [255 * m for m in MEAN], [255 * s for s in STD])
    assert relative_error(teacher(ordinary), target) > 0.01
