"""Pictures as files hold them, and as a model takes them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn


def open_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, turned as its camera says.

    Raises:
        ValueError: The file is not a picture.
    """
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'cannot be read as a picture ({error})') from error


def resize(picture: Image.Image, size: int | None, longest: int) -> np.ndarray:
    """A picture (H, W, 3), uint8, whose long side has `size` pixels, or else at most `longest`."""
    scale = (size or min(longest, max(picture.size))) / max(picture.size)
    if scale != 1:
        sides = [max(round(scale * side), 1) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    return np.asarray(picture)


@torch.no_grad()
def prepare(preprocessor: nn.Module, picture: np.ndarray) -> Tensor:
    """A picture (H, W, 3), uint8 RGB, as a model takes it: (1, 3, H', W')."""
    bgr = torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)[None]
    return preprocessor({'inputs': bgr})['inputs']
