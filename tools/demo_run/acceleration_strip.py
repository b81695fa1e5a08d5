"""The held-out region of the nuclei as one picture: four times as many tokens as a tile."""

import json
from pathlib import Path

from demo_data import nuclei
from demo_data.archives import ArchiveReader
from demo_data.coco import add_image, tile_annotations
from demo_data.pictures import read_picture, save_png

NAME = 'strip'
REGION = nuclei.SPLITS['val'][0]


def write_strip(folder: Path, reader: ArchiveReader) -> None:
    """Write `strip.png` and `strip.json`, a COCO document, into `folder`.

    Nuclei that the borders of tiles cut are whole here, so there are fewer of them.
    """
    picture = nuclei.read_nuclei(reader)
    labels = read_picture(reader, nuclei.PACKAGE, nuclei.LABELS)
    document = nuclei.coco_document('val')
    annotations = tile_annotations(labels, REGION, nuclei.MIN_AREA)
    add_image(document, f'{NAME}.png', REGION, annotations)
    save_png(folder / f'{NAME}.png', REGION.crop(picture))
    (folder / f'{NAME}.json').write_text(json.dumps(document))
