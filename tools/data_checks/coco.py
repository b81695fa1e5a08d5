"""Problems of annotations in COCO's form, which mmdet leaves out without a word."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

Problem = tuple[str, str]  # kind, and where with the values


def check_coco(path: str | Path, classes: Sequence[str]) -> Iterator[Problem]:
    """Find what is wrong in an annotation file, without the pictures.

    Args:
        path: The JSON file.
        classes: Names of the classes that the config trains.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        images, annotations = content['images'], content['annotations']
        categories = {category['id']: category['name'] for category in content['categories']}
    except (ValueError, KeyError, TypeError) as error:
        yield 'annotations cannot be read', f'{path}: {type(error).__name__}: {error}'
        return
    for name in classes:
        if name not in categories.values():
            yield 'class without a category', f'{path}: {name!r}'
    for what, members in (('image', images), ('annotation', annotations)):
        for number, count in Counter(member['id'] for member in members).items():
            if count > 1:
                yield f'{what} id used again', f'{path}: id {number}, {count} times'
    by_id = {image['id']: image for image in images}
    annotated = set()
    for annotation in annotations:
        image = by_id.get(annotation['image_id'])
        where = f'annotation {annotation["id"]}'
        if image is None:
            yield 'annotation of no image', f'{path}: {where}, image {annotation["image_id"]}'
            continue
        where = f'{image["file_name"]}: {where}'
        if categories.get(annotation['category_id']) not in classes:
            yield 'category that is no class', f'{where}, category {annotation["category_id"]}'
            continue
        problems = list(_check_object(annotation, image))
        yield from ((kind, f'{where}, {values}') for kind, values in problems)
        if all(kind == 'box partly outside' for kind, _ in problems):
            annotated.add(image['id'])
    for number in by_id.keys() - annotated:
        yield 'image without objects', f'{by_id[number]["file_name"]}'


def _check_object(annotation: dict, image: dict) -> Iterator[Problem]:
    """Box, area and polygons of one object."""
    try:
        x, y, width, height = map(float, annotation['bbox'])
    except (KeyError, TypeError, ValueError):
        yield 'box missing or no four numbers', f'bbox {annotation.get("bbox")}'
        return
    box = f'bbox {annotation["bbox"]} in {image["width"]} x {image["height"]}'
    if width < 0 or height < 0:
        yield 'box of negative size', box
    elif width < 1 or height < 1 or annotation.get('area', 1) <= 0:
        yield 'box without area', f'{box}, area {annotation.get("area")}'
    elif x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        yield 'box outside the picture', box
    elif min(x, y) < -1 or x + width > image['width'] + 1 or y + height > image['height'] + 1:
        yield 'box partly outside', box
    polygons = annotation.get('segmentation')
    for polygon in polygons if isinstance(polygons, list) else []:
        if len(polygon) < 6 or len(polygon) % 2:
            yield 'polygon of less than 3 points', f'{len(polygon)} numbers'
