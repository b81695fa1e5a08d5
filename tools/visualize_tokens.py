"""Draw which tokens leave where, and how many each layer runs on.

    python tools/visualize_tokens.py IMAGE... --config CONFIG --checkpoint CHECKPOINT --ratio 0.2
    python tools/visualize_tokens.py IMAGE... --arch fastitpn-base --ratio 0.4 --schedule-every 1

An IMAGE is a file, a folder or a pattern; each gives a PNG in `--out`. CONFIG is of any OpenMMLab
model around a backbone of itpn_mm, accelerated or not; options replace what it says.
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
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from inspection.attention import grid_of, window_edges
from inspection.models import build_preprocessor, find_parts
from inspection.panels import WINDOW
from inspection.pictures import open_picture, prepare, resize
from prediction.pictures import find_pictures, name_results

from itpn_mm.acceleration import trace_migration
from itpn_mm.acceleration.settings import SETTINGS
from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import load_pretrained

ARCHS = {
    f'{cls.__name__.lower()}-{size}': dict(type=f'itpn_mm.{cls.__name__}', arch=size)
    for cls in (HiViT, FastiTPN)
    for size in cls.arch_zoo
}
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
LONG_SIDE = 1333  # pixels; larger pictures are shrunk unless `--size` says more
STEPS = 7  # most panels beside the picture
NARROWEST, WIDTH = 8.0, 13.0  # inches
STAYING = '#4a5560'  # colour of what stays
PADDING = 225


class Trace(NamedTuple):
    """What happens to the tokens of one picture.

    Args:
        name: Of the picture.
        picture: (H, W, 3) uint8 RGB, padded to the patches that the backbone sees.
        left: Layer before which each patch leaves (h, w); -1 where it stays.
        edges: First rows and first columns of the windows, and the ends of the grid.
        counts: Patches that each layer runs on.
    """

    name: str
    picture: np.ndarray
    left: np.ndarray
    edges: tuple[list[int], list[int]]
    counts: list[int]

    @property
    def layers(self) -> list[int]:
        """Layers before which patches leave."""
        return [layer for layer in np.unique(self.left).tolist() if layer >= 0]


def load(
    model: dict,
    preprocessor: dict,
    checkpoint: str | None,
    setting: str | None = None,
    **changes: object,
) -> tuple[nn.Module, nn.Module]:
    """Build the accelerated backbone of a model, and what prepares its pictures.

    Args:
        model: Config of the backbone, accelerated or not.
        preprocessor: Config of the data preprocessor of any OpenMMLab package.
        checkpoint: File with the backbone's weights; ``None`` leaves them random.
        setting: Name of arguments of TokenMigration to take instead of those of the config.
        changes: Arguments of TokenMigration that replace what these say.

    Raises:
        ValueError: An argument or the checkpoint does not fit, or no token leaves.
        FileNotFoundError: There is no such checkpoint.
    """
    arguments = {}
    if str(model.get('type')).split('.')[-1] == 'TokenMigration':
        arguments = {k: v for k, v in model.items() if k not in ('type', 'backbone')}
        model = model['backbone']
    arguments = (arguments if setting is None else SETTINGS[setting]) | changes
    if not arguments.get('ratio'):
        raise ValueError('no token leaves at `ratio` 0: give `--ratio`, for example `--ratio 0.2`')
    model = {key: value for key, value in model.items() if key != 'init_cfg'}
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='itpn_mm.TokenMigration', backbone=model, **arguments))
    if checkpoint is not None:
        load_pretrained(backbone, checkpoint)
    return backbone.eval(), build_preprocessor(preprocessor)


@torch.no_grad()
def trace(backbone: nn.Module, preprocessor: nn.Module, picture: np.ndarray, name: str) -> Trace:
    """Run a picture (H, W, 3), uint8 RGB, and note where its patches leave.

    Raises:
        ValueError: The picture is smaller than a patch.
    """
    images = prepare(preprocessor, picture)
    patch, size = backbone.patch_size, backbone.acceleration.window_size
    grid = grid_of(backbone, images)
    left = torch.full((grid[0] * grid[1],), -1)
    for departure in trace_migration(backbone, images):
        left[departure.ids[0]] = departure.layer
    padded = np.full((grid[0] * patch, grid[1] * patch, 3), PADDING, dtype=np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return Trace(
        name,
        padded,
        left.view(grid).numpy(),
        tuple(window_edges(length, size) for length in grid),
        backbone.acceleration.tokens_per_layer(*grid),
    )


def draw(item: Trace, notes: str = '') -> Figure:
    """Draw the picture, the patches that have left layer by layer, and the tokens per layer."""
    colours = _colours(item.layers)
    height, width = item.picture.shape[:2]
    steps = item.layers
    if len(steps) > STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (STEPS - 1))] for i in range(STEPS)]
    count = 1 + len(steps)
    columns = min(range(1, count + 1), key=lambda n: _unfit(n, count, width / height))
    rows = -(-count // columns)
    cell = min(WIDTH / columns, 4.5 * width / height)
    heights = (rows * (cell * height / width + 0.45), 2.6)
    figure_width = max(columns * cell, NARROWEST)
    figure = Figure(figsize=(figure_width, sum(heights) + 0.4), layout='constrained')
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    axes = top.subplots(rows, columns, squeeze=False).flatten()
    h, w = item.left.shape
    windows = [len(edges) - 1 for edges in item.edges]
    several = f'{windows[0]} x {windows[1]} windows' if max(windows) > 1 else 'one window'
    _show(axes[0], item, item.picture, f'{h} x {w} patches\n{several}')
    for axis, layer in zip(axes[1:], steps, strict=False):
        gone = int(((item.left >= 0) & (item.left <= layer)).sum())
        title = f'before layer {layer}\n{gone} of {h * w} have left'
        _show(axis, item, _paint(item, layer, colours), title)
    for axis in axes[count:]:
        axis.set_axis_off()
    _add_colour_bar(top, axes, colours)
    _plot(bottom.subplots(), item, colours)
    figure.suptitle(f'{item.name}   {notes}'.rstrip(), fontsize=11)
    return figure


def _unfit(columns: int, count: int, aspect: float) -> float:
    """How far so many columns of panels are from a figure of 3 to 1, empty places included."""
    rows = -(-count // columns)
    return abs(math.log(columns * aspect / rows / 3)) + 0.4 * (rows * columns - count)


def _colours(layers: Sequence[int]) -> dict[int, np.ndarray]:
    """Colour of each layer, from early (yellow) to late (violet)."""
    places = np.linspace(0.95, 0.3, len(layers)) if len(layers) > 1 else [0.8]
    return {layer: np.array(colormaps['plasma'](p)[:3]) for layer, p in zip(layers, places)}


def _paint(item: Trace, layer: int, colours: dict[int, np.ndarray]) -> np.ndarray:
    """The picture in grey, and the patches that have left in the colour of their layer."""
    h, w = item.left.shape
    patch = item.picture.shape[0] // h
    fill = np.zeros((h, w, 4))  # colour and whether it is there
    for at, colour in colours.items():
        if at <= layer:
            fill[item.left == at] = (*colour, 1)
    fill = fill.repeat(patch, 0).repeat(patch, 1)
    grey = item.picture.mean(axis=2, keepdims=True) / 255
    tinted = fill[..., :3] * (0.75 + 0.25 * grey)
    return np.where(fill[..., 3:] > 0, tinted, grey)


def _show(axes: Axes, item: Trace, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation='antialiased')
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
    patch = item.picture.shape[0] // item.left.shape[0]
    for edges, line in zip(item.edges, (axes.axhline, axes.axvline), strict=True):
        for edge in edges[1:-1]:
            line(edge * patch - 0.5, color=WINDOW, linewidth=1.4)


def _add_colour_bar(
    figure: SubFigure, axes: Sequence[Axes], colours: dict[int, np.ndarray]
) -> None:
    if not colours:
        return
    edges = np.arange(len(colours) + 1) - 0.5
    palette = ListedColormap(list(colours.values()))
    mappable = ScalarMappable(BoundaryNorm(edges, palette.N), palette)
    bar = figure.colorbar(mappable, ax=list(axes), aspect=30, pad=0.01, ticks=range(palette.N))
    bar.set_ticklabels(list(colours), fontsize=8)
    bar.set_label('left before layer', fontsize=9)


def _plot(axes: Axes, item: Trace, colours: dict[int, np.ndarray]) -> None:
    """Patches of each layer below those that have left, in the colour of the layer where."""
    x, total = np.arange(len(item.counts)), item.left.size
    base = np.array(item.counts)
    axes.bar(x, base, color=STAYING, width=0.85)
    for layer in reversed(item.layers):  # late ones next to those that stay
        gone = np.where(x >= layer, (item.left == layer).sum(), 0)
        axes.bar(x, gone, bottom=base, color=colours[layer], width=0.85)
        base = base + gone
    axes.axhline(total, color='black', linestyle='--', linewidth=1)
    for at, count in enumerate(item.counts):
        if at in item.layers or at == 0:
            axes.text(at, count, count, color='white', ha='center', va='top', fontsize=7.5)
    share = sum(item.counts) / len(item.counts) / total
    axes.set_title(
        f'Patches that each layer runs on (dark), {share:.1%} of the dense {total} on average; '
        'above, those that have left',
        fontsize=9,
    )
    axes.set_xlabel('layer of stage 3')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.6, len(x) - 0.4)
    axes.spines[['top', 'right']].set_visible(False)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``changes`` holds the arguments of TokenMigration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--config', help='of a model around a backbone of itpn_mm')
    source.add_argument(
        '--arch', choices=ARCHS, metavar='ARCH', help=f'a backbone: {", ".join(ARCHS)}'
    )
    parser.add_argument('--checkpoint', help="the backbone's weights; random without it")
    parser.add_argument(
        '--setting',
        choices=SETTINGS,
        metavar='NAME',
        help=f'instead of what CONFIG says: {", ".join(SETTINGS)}',
    )
    parser.add_argument('--ratio', type=float, help='share of the tokens that leave')
    schedule = parser.add_mutually_exclusive_group()
    schedule.add_argument('--schedule-every', type=int, metavar='K', help='at layers 0, K, 2K, ...')
    schedule.add_argument('--schedule-first', type=int, metavar='M', help='at layers 0 to M - 1')
    schedule.add_argument(
        '--schedule-layers', type=_numbers, metavar='I,J,...', help='at these layers'
    )
    parser.add_argument('--window-size', type=int, metavar='N', help='of the windows, in tokens')
    parser.add_argument(
        '--size',
        type=int,
        metavar='PIXELS',
        help=f'resize the long side; by default only to {LONG_SIDE} where it is longer',
    )
    parser.add_argument('--out', type=Path, default=Path('tokens'), help='folder (default: tokens)')
    args = parser.parse_args(arguments)
    if args.size is not None and args.size < 1:
        parser.error(f'--size must be at least 1 pixel, but got {args.size}')
    args.changes = {}
    for name in ('ratio', 'window_size'):
        if getattr(args, name) is not None:
            args.changes[name] = getattr(args, name)
    for kind in ('every', 'first', 'layers'):
        if (value := getattr(args, f'schedule_{kind}')) is not None:
            args.changes['schedule'] = {kind: value}
    return args


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(',')]
    except ValueError:
        wrong = f'must be numbers such as 0,4,8, but got {text!r}'
        raise argparse.ArgumentTypeError(wrong) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status, 1 if a picture was skipped."""
    args = parse_args(arguments)
    try:
        files = find_pictures(args.images, args.out)
        model, preprocessor = ARCHS.get(args.arch), IMAGENET
        if args.config:
            parts = find_parts(Config.fromfile(args.config))
            model, preprocessor = parts.backbone, parts.preprocessor
        backbone, preprocessor = load(
            model, preprocessor, args.checkpoint, args.setting, **args.changes
        )
        args.out.mkdir(parents=True, exist_ok=True)
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f'visualize_tokens.py: {error}')
    notes = '' if args.checkpoint else '(random weights)'
    skipped = 0
    for i, (file, name) in enumerate(zip(files, name_results(files), strict=True)):
        target = args.out / f'{name}_tokens.png'
        start = f'[{i + 1}/{len(files)}] {file}'
        try:
            item = trace(
                backbone, preprocessor, resize(open_picture(file), args.size, LONG_SIDE), file.name
            )
        except ValueError as error:
            print(f'{start}: skipped, {error}', file=sys.stderr)
            skipped += 1
            continue
        draw(item, notes).savefig(target, dpi=100)
        total, end = item.left.size, item.counts[-1]
        share = sum(item.counts) / len(item.counts) / total
        print(f'{start}: {total} -> {end} patches, {share:.1%} on average; wrote {target}')
    return int(skipped > 0)


if __name__ == '__main__':
    sys.exit(main())
