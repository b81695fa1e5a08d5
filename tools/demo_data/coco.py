"""COCO documents, and instance annotations from label pictures."""

import numpy as np

from .pictures import Region


def encode_rle(mask: np.ndarray) -> dict:
    """Uncompressed COCO run lengths of a bool mask (H, W): exact for holes and for several parts.

    Runs go down the columns and start with the background, which may have length 0.
    """
    flat = np.asarray(mask, dtype=bool).ravel(order='F')
    starts = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], starts, [flat.size]])).tolist()
    return {'size': list(mask.shape), 'counts': [0, *counts] if flat[0] else counts}


def tile_annotations(labels: np.ndarray, tile: Region, min_area: int) -> list[dict]:
    """Annotations, without ids, of what a tile shows of each instance, in order of the labels.

    Args:
        labels: (H, W) integers of the whole picture, 0 = background, one number an instance.
        tile: the tile; masks and boxes are clipped at its borders and relative to its corner.
        min_area: an instance with fewer visible pixels than this gets no annotation.
    """
    part = tile.crop(labels)
    annotations = []
    for label in np.unique(part[part > 0]).tolist():
        mask = part == label
        area = int(mask.sum())
        if area < min_area:
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                'category_id': 1,
                'bbox': [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                'area': area,
                'iscrowd': 0,
                'segmentation': encode_rle(mask),
                'instance': label,
            }
        )
    return annotations


def add_image(document: dict, name: str, tile: Region, annotations: list[dict]) -> None:
    """Append a tile and its annotations, numbering both.

    Ids start at 1: COCO's evaluation takes a ground truth with id 0 for "no match".
    """
    image_id = len(document['images']) + 1
    document['images'].append(
        {
            'id': image_id,
            'file_name': name,
            'width': tile.right - tile.left,
            'height': tile.bottom - tile.top,
            'license': 1,
            'region': list(tile),
        }
    )
    for annotation in annotations:
        number = len(document['annotations']) + 1
        document['annotations'].append({'id': number, 'image_id': image_id, **annotation})
