import json

import numpy as np
import pytest
from demo_data.pictures import Region
from PIL import Image

from benchmarks.transfer import folds

WHOLE = Region(0, 0, 51, 39)


@pytest.mark.parametrize('side', folds.SIDES)
def test_held_out_and_training_parts_make_up_the_picture(side):
    cover = np.zeros((39, 51), int)
    for part in folds.held_out(WHOLE, side):
        part.crop(cover)[...] += 1
    assert (cover == 1).all()


def test_every_side_is_another_quarter():
    parts = {side: folds.held_out(WHOLE, side)[1] for side in folds.SIDES}
    assert parts == {
        'right': (39, 0, 51, 39),
        'left': (0, 0, 12, 39),
        'bottom': (0, 30, 51, 39),
        'top': (0, 0, 51, 9),
    }


def test_nothing_of_the_held_out_part_is_trained_on(tmp_path, monkeypatch):
    """Pixels of a made-up picture tell where they come from."""
    y, x = np.mgrid[:512, :512]
    picture = (x + 512 * y).astype(np.float64)
    labels = np.zeros((512, 512), np.int64)
    labels[20:60, 20:60], labels[400:440, 450:500] = 1, 2
    monkeypatch.setattr(
        folds, 'read_picture', lambda reader, package, name: labels if 'mask' in name else picture
    )
    folds.write_nuclei(tmp_path, None, 'right')
    document = json.loads((tmp_path / 'nuclei' / 'train.json').read_text())
    assert max(image['region'][2] for image in document['images']) == 384
    held = json.loads((tmp_path / 'nuclei' / 'val.json').read_text())
    assert {tuple(image['region'][::2]) for image in held['images']} == {(384, 512)}
    assert len(held['images']) == 4 and len(held['annotations']) == 1
    crops = list((tmp_path / 'pool' / 'nuclei').glob('*.png'))
    assert max(int(path.stem[-4:]) for path in crops) == 384 - folds.CROP
    classes = np.array(Image.open(tmp_path / 'nuclei' / 'classes' / 'val' / 'nuclei_y384_x384.png'))
    assert classes.shape == (128, 128) and set(np.unique(classes)) == {1, 2, 3}
