"""Draw what a pre-trained model makes of masked pictures: input, masked input, reconstruction.

    python tools/visualize_reconstruction.py CONFIG CHECKPOINT IMAGE... [--out PNG] [--seed N]

A picture is resized and cropped to the model's size. The reconstruction keeps the visible patches.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from itpn_mm.checkpoint import read_checkpoint, remap
from itpn_mm.checkpoint.report import shorten

GREY = 200  # of a masked patch
GAP, MARGIN, CAPTION = 6, 18, 30  # pixels
MIN_CELL = 224  # smaller pictures are enlarged by a whole number, pixel by pixel


class Reconstruction(NamedTuple):
    """One picture; arrays are (H, W, 3) uint8 RGB, `losses` the head's terms by name."""

    name: str
    image: np.ndarray
    masked: np.ndarray
    prediction: np.ndarray
    losses: dict[str, float]


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the pre-training model of `cfg` without its teacher, and load a checkpoint into it.

    Raises:
        ValueError: The model cannot reconstruct pictures, or the checkpoint does not fit it.
        FileNotFoundError: There is no such checkpoint.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    settings = cfg.model.to_dict()
    settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    for part in ('teacher', 'mfm_head'):  # feature targets are not drawn
        settings.pop(part, None)
    model = MODELS.build(settings)
    if not hasattr(model, 'draw_mask') or not hasattr(model.head, 'reconstruct'):
        raise ValueError(
            f'{cfg.filename}: {type(model).__name__} does not reconstruct pixels; give the config '
            'of a pre-training with an itpn_mm.PixelReconstructionHead'
        )
    state, report = remap(read_checkpoint(checkpoint, float32=True))
    report.raise_if_unexplained(checkpoint)
    target = model.state_dict()
    wrong = [key for key in target if key not in state or state[key].shape != target[key].shape]
    if wrong:
        raise ValueError(
            f'{checkpoint}: does not fit the model of {cfg.filename}; missing or of another '
            f'shape: {shorten(wrong)}; give the config that it was trained with'
        )
    model.load_state_dict({key: state[key] for key in target})
    return model.eval()


def read_pictures(paths: Sequence[str], height: int, width: int) -> Tensor:
    """Read pictures as mmpretrain's test pipelines do: (B, 3, height, width) uint8 BGR.

    Raises:
        FileNotFoundError: There is no such picture.
        ValueError: A file is not a picture.
    """
    pipeline = Compose(
        [
            dict(type='LoadImageFromFile'),
            dict(
                type='ResizeEdge',
                scale=max(height, width),
                edge='short',
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='CenterCrop', crop_size=(width, height)),
            dict(type='PackInputs'),
        ]
    )
    pictures = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f'{path}: no such picture')
        try:
            pictures.append(pipeline({'img_path': str(path)})['inputs'])
        except (AssertionError, OSError, ValueError) as error:  # mmcv asserts
            raise ValueError(f'{path}: cannot be read as a picture ({error})') from error
    return torch.stack(pictures)


@torch.no_grad()
def reconstruct(model: nn.Module, pictures: Tensor, names: Sequence[str]) -> list[Reconstruction]:
    """Mask, reconstruct and score pictures (B, 3, H, W), uint8 BGR."""
    preprocessor = model.data_preprocessor
    images = preprocessor({'inputs': pictures, 'data_samples': None})['inputs']
    mask = model.draw_mask(images)
    tokens = model.decode(model.encode(images, mask), images, mask)
    shown = model.head.reconstruct(tokens, images)
    if getattr(preprocessor, '_enable_normalize', False):
        shown = shown * preprocessor.std + preprocessor.mean
    if not getattr(preprocessor, '_channel_conversion', False):
        shown = shown.flip(1)  # the model works on BGR
    shown = shown.round().clamp(0, 255).to(torch.uint8)
    rgb = pictures.flip(1)

    p = model.backbone.patch_size
    grid = (images.shape[2] // p, images.shape[3] // p)
    hidden = mask.as_bool().view(-1, 1, *grid)
    hidden = hidden.repeat_interleave(p, 2).repeat_interleave(p, 3)
    masked = torch.where(hidden, GREY, rgb)
    prediction = torch.where(hidden, shown, rgb)
    result = []
    for i, name in enumerate(names):
        one = type(mask)(*(ids[i : i + 1] for ids in mask))
        losses = model.head.loss(tokens[i : i + 1], images[i : i + 1], one)
        arrays = (x[i].permute(1, 2, 0).numpy() for x in (rgb, masked, prediction))
        result.append(Reconstruction(name, *arrays, {k: v.item() for k, v in losses.items()}))
    return result


def draw_grid(items: Sequence[Reconstruction], notes: Sequence[str] = ()) -> Image.Image:
    """Draw the three pictures of each item in a row with a caption, and notes at the foot.

    From four items on, two stand side by side.
    """
    height, width = items[0].image.shape[:2]
    scale = max(1, -(-MIN_CELL // max(height, width)))
    cell = (width * scale, height * scale)
    columns = 1 if len(items) < 4 else 2
    rows = -(-len(items) // columns)
    block = 3 * cell[0] + 2 * GAP
    row_height = cell[1] + CAPTION
    notes_top = MARGIN + CAPTION + rows * row_height
    size = (
        columns * block + (columns + 1) * MARGIN,
        notes_top + 20 * len(notes) + (MARGIN if notes else 0),
    )
    canvas = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(canvas)
    title, text = ImageFont.load_default(17), ImageFont.load_default(14)
    for index, item in enumerate(items):
        left = MARGIN + index % columns * (block + MARGIN)
        top = MARGIN + CAPTION + index // columns * row_height
        for i, (heading, picture) in enumerate(
            zip(
                ('input', 'masked input', 'reconstruction'),
                (item.image, item.masked, item.prediction),
            )
        ):
            x = left + i * (cell[0] + GAP)
            if index < columns:
                draw.text((x + cell[0] / 2, MARGIN), heading, 'black', title, anchor='ma')
            canvas.paste(Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST), (x, top))
        losses = '   '.join(f'{name} {value:.3f}' for name, value in item.losses.items())
        draw.text((left, top + cell[1] + 5), item.name, '#444444', text)
        draw.text((left + block, top + cell[1] + 5), losses, 'black', text, anchor='ra')
    for i, note in enumerate(notes):
        draw.text((MARGIN, notes_top + 20 * i), note, '#444444', text)
    return canvas


def describe(model: nn.Module) -> list[str]:
    """What a reader of the grid has to know."""
    notes = [
        f'{model.masking.ratio:.0%} of the patches are masked. The reconstruction shows predicted '
        'patches among the visible ones of the input.'
    ]
    if model.head.norm_pix:
        notes.append(
            'The model predicts patches normalised to mean 0 and variance 1; each is drawn with '
            'the true mean and contrast of its place.'
        )
    return notes


def main(arguments: list[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='of the pre-training')
    parser.add_argument('checkpoint')
    parser.add_argument('images', nargs='+')
    parser.add_argument('--out', type=Path, default=Path('reconstructions.png'))
    parser.add_argument('--seed', type=int, default=0, help='of the masks (default: 0)')
    args = parser.parse_args(arguments)
    try:
        model = load_model(Config.fromfile(args.config), args.checkpoint)
        size = (patches * model.backbone.patch_size for patches in model.backbone.grid)
        pictures = read_pictures(args.images, *size)
        torch.manual_seed(args.seed)
        names = ['/'.join(Path(path).parts[-3:]) for path in args.images]
        items = reconstruct(model, pictures, names)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'visualize_reconstruction.py: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_grid(items, describe(model)).save(args.out)
    for item in items:
        losses = ', '.join(f'{name} {value:.4f}' for name, value in item.losses.items())
        print(f'{item.name}: {losses}')
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
