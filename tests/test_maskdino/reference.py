"""MaskDINO's criterion and inference once more: slow, in loops over numbers, from the formulas.

Written from the papers' text (MaskDINO; MaskFormer for classes; PointRend for points), in float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

Draws = Callable[[int], np.ndarray]  # a number of points -> that many, x and y between 0 and 1
WEIGHTS = dict(cls=4, mask=5, dice=5, bbox=5, iou=2)  # of costs and of losses


@dataclass
class Set:
    """Predictions of a batch: logits (B, M, K or K + 1), boxes (B, M, 4), masks (B, M, H, W)."""

    name: str
    logits: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


@dataclass
class Objects:
    """Of an image: labels (n,), boxes (n, 4) as centre and size, masks (n, H, W)."""

    labels: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


@dataclass
class Criterion:
    """Losses by name.

    `no_object` is the weight of the class "no object", `None` for a focal loss. `valid` has the
    part of the width and of the height of each image that is not padding.
    """

    num_classes: int
    draws: Draws
    num_points: int
    no_object: float | None = None
    boxed: int | None = None
    valid: Sequence[tuple[float, float]] | None = None

    def __call__(self, sets: Sequence[Set], objects: Sequence[Objects]) -> dict[str, float]:
        losses = {}
        for group in sets:
            pairs = [
                (image, query, index)
                for image, here in enumerate(objects)
                for query, index in cheapest(self.costs(group, image, here))
            ]
            losses |= self.compare(group, pairs, objects, 1, group.name)
        return losses

    def denoising(
        self, sets: Sequence[Set], objects: Sequence[Objects], groups: int, slots: int
    ) -> dict[str, float]:
        """Losses of noisy queries."""
        pairs = [
            (image, group * slots + index, index)
            for group in range(groups)
            for image, here in enumerate(objects)
            for index in range(len(here.labels))
        ]
        losses = {}
        for group in sets:
            losses |= self.compare(group, pairs, objects, groups, f'{group.name}dn_')
        return losses

    def costs(self, group: Set, image: int, objects: Objects) -> list[list[float]]:
        """A row for each query, a column for each object."""
        points = self.draws(self.num_points)
        wanted = [sample(mask, points) for mask in objects.masks]
        rows = []
        for query, logits in enumerate(group.logits[image]):
            values = sample(group.masks[image, query], self.place(points, image))
            row = []
            for index, label in enumerate(objects.labels):
                p = sigmoid(logits[label])
                found, box = -0.25 * (1 - p) ** 2 * math.log(p), objects.boxes[index]
                missed = -0.75 * p**2 * math.log(1 - p)
                row.append(
                    WEIGHTS['cls'] * (found - missed)
                    + WEIGHTS['mask'] * binary_cross_entropy(values, wanted[index])
                    + WEIGHTS['dice'] * dice(values, wanted[index])
                    + WEIGHTS['bbox'] * sum(abs(group.boxes[image, query] - box))
                    + WEIGHTS['iou'] * (1 - giou(group.boxes[image, query], box))
                )
            rows.append(row)
        return rows

    def place(self, points: np.ndarray, image: int) -> np.ndarray:
        return points if self.valid is None else points * np.array(self.valid[image])

    def points(self, mask: np.ndarray, image: int) -> np.ndarray:
        """Three quarters are the least certain of three times as many."""
        many = self.draws(3 * self.num_points)
        certain = [abs(value) for value in sample(mask, self.place(many, image))]
        count = int(0.75 * self.num_points)
        least = sorted(range(len(many)), key=lambda i: certain[i])[:count]
        return np.concatenate((many[least], self.draws(self.num_points - count)))

    def compare(
        self,
        group: Set,
        pairs: Sequence[tuple[int, int, int]],
        objects: Sequence[Objects],
        groups: int,
        prefix: str,
    ) -> dict[str, float]:
        count = max(sum(len(here.labels) for here in objects), 1) * groups
        total = dict.fromkeys(('mask', 'dice', 'bbox', 'iou'), 0.0)
        label_of = {}
        for image, query, index in pairs:
            label = label_of[image, query] = int(objects[image].labels[index])
            mask, box = group.masks[image, query], group.boxes[image, query]
            points = self.points(mask, image)
            values = sample(mask, self.place(points, image))
            wanted = sample(objects[image].masks[index], points)
            total['mask'] += binary_cross_entropy(values, wanted)
            total['dice'] += dice(values, wanted)
            if self.boxed is None or label < self.boxed:
                total['bbox'] += sum(abs(box - objects[image].boxes[index]))
                total['iou'] += 1 - giou(box, objects[image].boxes[index])
        losses = {name: value / count for name, value in total.items()}
        losses['cls'] = self.classes(group, label_of, count)
        return {f'{prefix}loss_{name}': WEIGHTS[name] * value for name, value in losses.items()}

    def classes(self, group: Set, label_of: dict, count: int) -> float:
        loss = weights = 0.0
        for image, query in np.ndindex(group.logits.shape[:2]):
            logits, label = group.logits[image, query], label_of.get((image, query))
            if self.no_object is not None:
                weight = self.no_object if label is None else 1.0
                wanted = self.num_classes if label is None else label
                loss += weight * (math.log(sum(map(math.exp, logits))) - logits[wanted])
                weights += weight
                continue
            for index, logit in enumerate(logits):
                p = sigmoid(logit)
                if index == label:
                    loss -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    loss -= 0.75 * p**2 * math.log(1 - p)
        return loss / (count if self.no_object is None else weights)


def cheapest(costs: list[list[float]]) -> list[tuple[int, int]]:
    """Pairs of row and column, as many as there can be, with the lowest sum: tries all."""
    rows, columns = len(costs), len(costs[0]) if costs else 0
    few = min(rows, columns)

    def ways() -> Iterator[list[tuple[int, int]]]:
        if columns <= rows:
            for chosen in permutations(range(rows), few):
                yield [(row, column) for column, row in enumerate(chosen)]
        else:
            for chosen in permutations(range(columns), few):
                yield list(enumerate(chosen))

    return min(ways(), key=lambda pairs: sum(costs[row][column] for row, column in pairs))


def sample(mask: np.ndarray, points: np.ndarray) -> list[float]:
    """Values of a map at points, fractions of it; 0 outside."""
    height, width = mask.shape
    values = []
    for x, y in points:
        column, row = x * width - 0.5, y * height - 0.5
        value = 0.0
        for j in (math.floor(column), math.floor(column) + 1):
            for i in (math.floor(row), math.floor(row) + 1):
                if 0 <= j < width and 0 <= i < height:
                    share = (1 - abs(column - j)) * (1 - abs(row - i))
                    value += share * float(mask[i, j])
        values.append(value)
    return values


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def binary_cross_entropy(logits: Sequence[float], wanted: Sequence[float]) -> float:
    terms = [
        -t * math.log(sigmoid(x)) - (1 - t) * math.log(1 - sigmoid(x))
        for x, t in zip(logits, wanted, strict=True)
    ]
    return sum(terms) / len(terms)


def dice(logits: Sequence[float], wanted: Sequence[float]) -> float:
    found = [sigmoid(x) for x in logits]
    both = sum(p * t for p, t in zip(found, wanted, strict=True))
    return 1 - (2 * both + 1) / (sum(found) + sum(wanted) + 1)


def corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def giou(first: Sequence[float], second: Sequence[float]) -> float:
    """Generalised intersection over union of boxes given by centre and size."""
    a, b = corners(first), corners(second)
    shared, hull = [
        max(inner(a[2], b[2]) - outer(a[0], b[0]), 0)
        * max(inner(a[3], b[3]) - outer(a[1], b[1]), 0)
        for inner, outer in ((min, max), (max, min))
    ]
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared
    return shared / union - (hull - union) / hull


def resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, between centres of pixels; beyond the outermost ones their values go on."""
    out = np.empty(size)
    for i, j in np.ndindex(size):
        places = []
        for index, count, wanted in ((i, mask.shape[0], size[0]), (j, mask.shape[1], size[1])):
            place = min(max((index + 0.5) * count / wanted - 0.5, 0), count - 1)
            low = min(int(place), max(count - 2, 0))
            places.append((low, min(low + 1, count - 1), place - low))
        (top, bottom, y), (left, right, x) = places
        upper = mask[top, left] * (1 - x) + mask[top, right] * x
        lower = mask[bottom, left] * (1 - x) + mask[bottom, right] * x
        out[i, j] = upper * (1 - y) + lower * y
    return out


def class_scores(logits: Sequence[float], no_object: bool, temperature: float | None) -> list:
    """Of a query, without "no object"."""
    if no_object:
        return softmax(logits)[:-1]
    scores = [sigmoid(x) for x in logits]
    return scores if temperature is None else softmax([s / temperature for s in scores])


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def semantic(
    logits: np.ndarray, masks: np.ndarray, no_object: bool, temperature: float | None
) -> np.ndarray:
    """Logits (M, K or K + 1) and masks (M, H, W) -> (K, H, W)."""
    scores = [class_scores(row, no_object, temperature) for row in logits]
    out = np.zeros((len(scores[0]), *masks.shape[1:]))
    for k, i, j in np.ndindex(out.shape):
        out[k, i, j] = sum(row[k] * sigmoid(m[i, j]) for row, m in zip(scores, masks, strict=True))
    return out


def instances(
    logits: np.ndarray, masks: np.ndarray, no_object: bool, count: int, mask_score: bool
) -> list[tuple[float, int, int]]:
    """Score, label and query of the best pairs of query and class, before masks are scored."""
    best = [
        (score, label, query)
        for query, row in enumerate(logits)
        for label, score in enumerate(class_scores(row, no_object, None))
    ]
    out = []
    for score, label, query in sorted(best, reverse=True)[:count]:
        inside = [sigmoid(x) for x in masks[query].flat if x > 0]
        quality = sum(inside) / (len(inside) + 1e-6)
        out.append((score * quality if mask_score else score, label, query))
    return out


def panoptic(
    logits: np.ndarray, masks: np.ndarray, no_object: bool, num_things: int, temperature: float
) -> tuple[np.ndarray, list[int]]:
    """Segments (H, W), 0 for none, and the label of each from 1."""
    candidates = []
    for query, row in enumerate(logits):
        plain = class_scores(row, no_object, None)
        if max(plain) > 0.25 and not (no_object and np.argmax(row) == len(row) - 1):
            scores = class_scores(row, no_object, temperature)
            candidates.append((query, max(scores), int(np.argmax(scores))))
    out, labels = np.zeros(masks.shape[1:], int), []
    owner = {}
    for i, j in np.ndindex(out.shape):
        values = [score * sigmoid(masks[query, i, j]) for query, score, _ in candidates]
        owner[i, j] = candidates[int(np.argmax(values))][0] if values else None
    segment_of = {}
    for query, _, label in candidates:
        whole = {pixel for pixel in owner if sigmoid(masks[query][pixel]) >= 0.5}
        owned = {pixel for pixel in owner if owner[pixel] == query}
        if not owned & whole or len(owned) / len(whole) < 0.8:
            continue
        if label not in segment_of:
            labels.append(label)
            segment = len(labels)
            if label >= num_things:
                segment_of[label] = segment
        else:
            segment = segment_of[label]
        for pixel in owned & whole:
            out[pixel] = segment
    return out, labels
