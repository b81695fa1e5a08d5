"""Loss curves, and detections beside the ground truth."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image
from pycocotools import mask as coco_mask

from .results import Records, loss_names

# On dark pictures; red is kept for errors.
COLOURS = (
    *('#56B4E9', '#F0E442', '#00B386', '#F29BC9', '#E69F00'),
    *('#3D7BFF', '#FFFFFF', '#B48CFF', '#7FE5D8', '#B6D957'),
)
WRONG = '#FF4B1F'
# On white; the colour-blind can tell them apart (Okabe and Ito).
LINES = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MATCH = 0.5  # IoU


def draw_loss_curves(
    pretrain: Records, finetune: Mapping[str, tuple[Records, Records]], path: Path
) -> None:
    """Draw the terms of the pre-training's loss, the fine-tuning's loss and the validations' AP.

    Args:
        pretrain: Logged iterations.
        finetune: Logged iterations and validations by label of the start.
        path: PNG to write.
    """
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3)
    for i, name in enumerate(loss_names(pretrain)):
        colour, width = ('black', 2.2) if name == 'loss' else (LINES[(i - 1) % len(LINES)], 1.6)
        label = 'total' if name == 'loss' else name.removeprefix('loss_')
        plot_line(
            left, [r['step'] for r in pretrain], [r[name] for r in pretrain], colour, label, width
        )
    finish_axes(left, 'pre-training loss, by term', 'iteration')
    for i, (label, (train, val)) in enumerate(finetune.items()):
        colour = LINES[i]
        plot_line(middle, [r['step'] for r in train], [r['loss'] for r in train], colour, label)
        epochs = [r['step'] for r in val]
        for kind, style in (('bbox', '-o'), ('segm', '--s')):
            values = [r[f'coco/{kind}_mAP'] for r in val]
            name = f'{"box" if kind == "bbox" else "mask"} mAP'
            name = name if len(finetune) == 1 else f'{name}, {label}'
            right.plot(epochs, values, style, color=colour, markersize=4, label=name)
    finish_axes(middle, 'fine-tuning loss (Mask R-CNN)', 'iteration')
    finish_axes(right, 'AP on the held-out region', 'epoch')
    figure.savefig(path, dpi=110, bbox_inches='tight', pad_inches=0.15)


def plot_line(axes: Axes, x: list, y: list, colour: str, label: str, width: float = 1.8) -> None:
    axes.plot(x, y, color=colour, label=label, linewidth=width, marker='.' if len(x) < 3 else None)


def finish_axes(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def match_masks(truth: Sequence[dict], found: Sequence[dict]) -> dict[int, int]:
    """Index of the ground truth of each prediction that has one, both RLE masks of one tile.

    The surest prediction chooses first, as in COCO's evaluation, at an IoU of at least `MATCH`.
    """
    if not truth or not found:
        return {}
    ious = coco_mask.iou(
        [f['segmentation'] for f in found], [t['segmentation'] for t in truth], [0] * len(truth)
    )
    return match_surest([f['score'] for f in found], ious)


def match_surest(scores: Sequence[float], ious: np.ndarray) -> dict[int, int]:
    """Index of the ground truth of each prediction that has one, given IoUs (N, M) of all pairs."""
    matches: dict[int, int] = {}
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        taken = set(matches.values())
        free = [j for j in range(ious.shape[1]) if j not in taken and ious[i, j] >= MATCH]
        if free:
            matches[i] = max(free, key=lambda j: ious[i, j])
    return matches


def by_image(
    annotations: dict, predictions: Sequence[dict], threshold: float
) -> tuple[dict[int, list], dict[int, list]]:
    """Annotations, with packed RLE masks, and predictions of at least a score, by image."""
    truths, founds = defaultdict(list), defaultdict(list)
    for item in annotations['annotations']:
        rle = item['segmentation']
        if isinstance(rle['counts'], list):
            rle = coco_mask.frPyObjects(rle, *rle['size'])
        truths[item['image_id']].append({**item, 'segmentation': rle})
    for item in predictions:
        if item['score'] >= threshold:
            founds[item['image_id']].append(item)
    return truths, founds


def draw_detections(
    annotations: dict, predictions: Sequence[dict], images: Path, threshold: float, path: Path
) -> None:
    """Draw tiles with the ground truth above and the predictions below.

    Args:
        annotations: COCO document.
        predictions: COCO results with boxes, RLE masks and scores.
        images: Folder of the tiles.
        threshold: Predictions of a lower score are left out.
        path: PNG to write.
    """
    truths, founds = by_image(annotations, predictions, threshold)
    tiles = annotations['images']
    figure = Figure(figsize=(4 * len(tiles), 9.1), layout='constrained')
    rows = figure.subplots(2, len(tiles), squeeze=False)
    for tile, above, below in zip(tiles, rows[0], rows[1]):
        truth, found = truths[tile['id']], founds[tile['id']]
        matches = match_masks(truth, found)
        picture = np.asarray(Image.open(images / tile['file_name']).convert('RGB'))
        colours = [COLOURS[j % len(COLOURS)] for j in range(len(truth))]
        hits = set(matches.values())
        draw_tile(above, picture, truth, [c if j in hits else WRONG for j, c in enumerate(colours)])
        missed = len(truth) - len(hits)
        above.set_title(f'{tile["file_name"]}\nground truth: {len(truth)}, {missed} not found')
        draw_tile(
            below,
            picture,
            found,
            [colours[matches[i]] if i in matches else WRONG for i in range(len(found))],
        )
        wrong = len(found) - len(matches)
        below.set_title(f'predictions: {len(found)}, {wrong} without a match')
    figure.supxlabel(
        f'Predictions of score {threshold} and more; dashed: boxes. A colour stands for one '
        f'nucleus above and below; red has no match at a mask IoU of {MATCH}.',
        fontsize=11,
    )
    figure.savefig(path, dpi=100, bbox_inches='tight', pad_inches=0.15)


def draw_tile(
    axes: Axes,
    picture: np.ndarray,
    items: Sequence[dict],
    colours: Sequence[str],
    masks_only: bool = False,
) -> None:
    """Draw a tile with the outline and box of each item, and its score if it has one.

    Args:
        axes: To draw on.
        picture: (H, W, 3) uint8.
        items: COCO annotations or results, with RLE masks.
        colours: Of the items.
        masks_only: Leave boxes and scores out.
    """
    axes.imshow(picture, interpolation='bicubic')
    axes.set_axis_off()
    height, width = picture.shape[:2]
    for item, colour in zip(items, colours):
        # A frame of background closes the outline of what touches the border.
        mask = np.pad(coco_mask.decode(item['segmentation']), 1)
        x, y = np.arange(-1, width + 1), np.arange(-1, height + 1)
        axes.contourf(x, y, mask, levels=[0.5, 1], colors=[colour], alpha=0.3)
        axes.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=1.8)
        if masks_only:
            continue
        left, top, w, h = item['bbox']
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color=colour, linestyle='--')
        )
        if 'score' in item:
            place = min(max(left, 1), width - 12), max(top - 2.5, 5)
            shade = dict(facecolor='black', alpha=0.55, linewidth=0, pad=1)
            axes.text(*place, f'{item["score"]:.2f}', color=colour, size=9, bbox=shade)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
