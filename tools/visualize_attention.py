"""Draw where patches attend to, and what encoder and pyramid make of a picture.

    python tools/visualize_attention.py IMAGE... --config CONFIG --checkpoint CHECKPOINT
    python tools/visualize_attention.py IMAGE --config CONFIG --checkpoint random A.pth \
        --query 120,80 300,40 --layer -1 --heads

An IMAGE is a file, a folder or a pattern; each gives a PNG in `--out`. CONFIG is of any OpenMMLab
model around a backbone of itpn_mm: a pre-training, a classifier, a detector or a segmentor,
accelerated or not. Each checkpoint has its rows; `random` stands for the weights that training from
scratch starts with. As Figure 6 of the paper: a red square is the query patch, colours are its
attention to the others in a layer of stage 3, each map from 0 to its largest value. The features of
all stages and levels are drawn by their first three principal components.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from inspection.attention import AttentionMaps, grid_of, look
from inspection.components import fit, to_rgb
from inspection.models import RANDOM, Looked, Parts, find_parts, load_parts
from inspection.panels import Panel, Section, describe_peak, draw_sections, paint_attention
from inspection.pictures import open_picture, prepare, resize
from inspection.queries import patch_at, salient_patches
from matplotlib.figure import Figure
from prediction.pictures import find_pictures, name_results

LONGEST = 512  # pixels of a long side unless `--size` says more, as in the paper's Figure 6 (c)
SALIENT = 3  # patches without `--query`
ATTENTION_COLUMNS, HEAD_COLUMNS = 4, 8
NOTES = (
    'Attention: each map in colours from 0 to its largest value; "2 x even" is twice what each '
    'would get if all got the same.\n'
    'Features: the first three principal components as red, green and blue; a hue means the same '
    'in all pictures of a call and all levels of a pyramid, not in other stages and checkpoints.'
)
OF_WINDOWS = (
    '\nAttention of this layer stays within a window (blue lines); what is outside, or has left by '
    'token migration, is grey.'
)


class Subject(NamedTuple):
    """A picture to look at.

    Args:
        name: Of the picture.
        pixels: (H, W, 3) uint8 RGB.
        queries: Rows and columns of the patches to look from.
    """

    name: str
    pixels: np.ndarray
    queries: list[tuple[int, int]]


class Sight(NamedTuple):
    """What a model makes of a picture: its attention, and maps (C, h, w) by title with strides."""

    attention: AttentionMaps
    maps: dict[str, tuple[int, Tensor]]


def choose_subject(file: Path, size: int | None, patch: int, pixels: Sequence) -> Subject:
    """Read a picture and find the patches to look from.

    Raises:
        ValueError: It cannot be read, or a query lies outside.
    """
    opened = open_picture(file)
    picture = resize(opened, size, LONGEST)
    scale = picture.shape[1] / opened.width
    if pixels:
        queries = [patch_at(x, y, scale, patch, picture.shape) for x, y in pixels]
    else:
        queries = salient_patches(picture, patch, SALIENT)
    return Subject(file.name, picture, queries)


@torch.no_grad()
def see(model: Looked, subject: Subject, layer: int) -> Sight:
    """Run backbone and pyramid on a picture."""
    images = prepare(model.preprocessor, subject.pixels)
    width = grid_of(model.backbone, images)[1]
    queries = [row * width + column for row, column in subject.queries]
    stages, attention = look(model.backbone, images, layer, queries)
    finest = model.backbone.patch_size // 4  # stride of stage 1
    named = {f'encoder, stage {i}': x for i, x in enumerate(stages, start=1)}
    levels = model.pyramid(tuple(stages[i] for i in model.backbone.out_indices))
    named |= {f'pyramid, level {i}': x for i, x in enumerate(levels, start=1)}
    maps = {}
    for name, x in named.items():
        # A pooled level leaves out what is not a whole place.
        stride = finest * 2 ** round(math.log2(stages[0].shape[3] / x.shape[3]))
        height, width = (-(-n // stride) for n in subject.pixels.shape[:2])
        maps[name] = stride, x[0, :, :height, :width]  # without the padding
    return Sight(attention, maps)


def feature_panels(sights: Sequence[Sight], subjects: Sequence[Subject]) -> list[list[Panel]]:
    """The features of each picture by their components, which those of one kind share."""
    grey = [torch.from_numpy(subject.pixels.mean(axis=2)) for subject in subjects]
    kinds: dict[tuple[str, int], dict[str, list[Tensor]]] = {}
    for name, (_, x) in sights[0].maps.items() if sights else ():
        kind = name.split(',')[0], len(x)
        kinds.setdefault(kind, {})[name] = [sight.maps[name][1] for sight in sights]
    components = {k: v for levels in kinds.values() for k, v in fit(levels, grey).items()}
    return [
        [
            Panel(
                f'{name}\nstride {stride}, {len(x)} channels',
                to_rgb(x, components[name]),
                (x.shape[1] * stride, x.shape[2] * stride),
            )
            for name, (stride, x) in sight.maps.items()
        ]
        for sight in sights
    ]


def attention_rows(
    subject: Subject, attention: AttentionMaps, patch: int, per_head: bool
) -> list[list[Panel]]:
    """The picture, and the attention from each query: mean over heads, gathering tokens, heads."""
    picture = subject.pixels / 255
    extent = picture.shape[:2]
    edges = attention.windows or ((), ())
    windows = tuple([patch * edge for edge in side[1:-1]] for side in edges)
    squares = [
        (patch * column, patch * row, patch, str(i))
        for i, (row, column) in enumerate(subject.queries, start=1)
    ]
    maps = attention.maps.numpy()
    num_heads = maps.shape[1]

    def panel(title: str, shares: np.ndarray, query: int) -> Panel:
        painted = paint_attention(picture, shares, patch)
        title = f'{title}\n{describe_peak(shares)}'
        return Panel(title, painted, extent, [(*squares[query][:3], '')], windows)

    panels, rows = [Panel('picture and queries\n', picture, extent, squares)], []
    for i, heads in enumerate(maps):
        panels.append(panel(f'query {i + 1}, mean of {num_heads} heads', heads.mean(axis=0), i))
        if attention.gathering is not None:
            shares = attention.gathering[i].mean(dim=0).numpy()
            for axis, side in enumerate(edges):
                shares = shares.repeat(np.diff(side), axis=axis)
            panels.append(panel(f'query {i + 1}, to gathering tokens', shares, i))
    rows += _wrap(panels, ATTENTION_COLUMNS)
    for i, heads in enumerate(maps if per_head else ()):
        of_heads = [panel(f'query {i + 1}, head {j}', x, i) for j, x in enumerate(heads)]
        rows += _wrap(of_heads, HEAD_COLUMNS)
    return rows


def _wrap(panels: list[Panel], columns: int) -> list[list[Panel]]:
    """Rows as even as can be."""
    count = -(-len(panels) // columns)
    edges = [i * len(panels) // count for i in range(count + 1)]
    return [panels[a:b] for a, b in zip(edges, edges[1:])]


def draw(
    subjects: Sequence[Subject], parts: Parts, checkpoints: Sequence[str], layer: int, heads: bool
) -> list[Figure]:
    """A figure for each picture with the rows of each checkpoint."""
    sections: list[list[Section]] = [[] for _ in subjects]
    notes = NOTES
    for checkpoint in checkpoints:
        model, remarks = load_parts(parts, checkpoint)
        sights = [see(model, subject, layer) for subject in subjects]
        features = feature_panels(sights, subjects)
        name = 'random weights' if checkpoint == RANDOM else checkpoint
        title = f'{name}: attention of layer {layer} of {model.backbone.depths[2]}, features'
        for subject, sight, panels, own in zip(subjects, sights, features, sections, strict=True):
            rows = attention_rows(subject, sight.attention, model.backbone.patch_size, heads)
            own.append(Section('; '.join([title, *remarks]), [*rows, panels]))
        if any(sight.attention.windows for sight in sights):
            notes = NOTES + OF_WINDOWS
    return [
        draw_sections(subject.name, own, notes, subject.pixels.shape)
        for subject, own in zip(subjects, sections, strict=True)
    ]


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--config', required=True, help='of a model around a backbone of itpn_mm')
    parser.add_argument(
        '--checkpoint',
        nargs='+',
        default=[RANDOM],
        help=f'one or several to compare; `{RANDOM}` (default): untrained weights',
    )
    parser.add_argument(
        '--query',
        nargs='+',
        type=_pixel,
        default=[],
        metavar='X,Y',
        help=f'pixels of the file whose patches attend; by default the {SALIENT} patches whose '
        "colours are the farthest from the picture's mean",
    )
    parser.add_argument(
        '--layer', type=int, default=-1, help='of stage 3, from 0 or from -1, the last (default)'
    )
    parser.add_argument('--heads', action='store_true', help='draw each head, too')
    parser.add_argument(
        '--size',
        type=int,
        metavar='PIXELS',
        help=f'resize the long side; by default only to {LONGEST} where it is longer',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('attention'), help='folder (default: attention)'
    )
    args = parser.parse_args(arguments)
    if args.size is not None and args.size < 1:
        parser.error(f'--size must be at least 1 pixel, but got {args.size}')
    return args


def _pixel(text: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(','))
    except ValueError:
        wrong = f'must be a column and a row such as 120,80, but got {text!r}'
        raise argparse.ArgumentTypeError(wrong) from None
    return x, y


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status, 1 if a picture was skipped."""
    args = parse_args(arguments)
    skipped = 0
    try:
        parts = find_parts(Config.fromfile(args.config))
        files = find_pictures(args.images, args.out)
        model, _ = load_parts(parts, RANDOM)
        patch, depth = model.backbone.patch_size, model.backbone.depths[2]
        if not -depth <= args.layer < depth:
            raise ValueError(
                f'`--layer` must be {-depth} to {depth - 1}, as stage 3 has {depth} layers, but '
                f'got {args.layer}'
            )
        subjects, targets = [], []
        for file, name in zip(files, name_results(files), strict=True):
            try:
                subjects.append(choose_subject(file, args.size, patch, args.query))
            except ValueError as error:
                print(f'{file}: skipped, {error}', file=sys.stderr)
                skipped += 1
                continue
            targets.append(args.out / f'{name}_attention.png')
        figures = draw(subjects, parts, args.checkpoint, args.layer % depth, args.heads)
        args.out.mkdir(parents=True, exist_ok=True)
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f'visualize_attention.py: {error}')
    for figure, target in zip(figures, targets, strict=True):
        figure.savefig(target, dpi=100)
        print(f'wrote {target}')
    return int(skipped > 0)


if __name__ == '__main__':
    sys.exit(main())
