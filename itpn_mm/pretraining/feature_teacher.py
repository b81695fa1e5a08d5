"""Any vision encoder that gives patch tokens as teacher."""

import math
from pathlib import Path

import torch
from torch import Tensor

from itpn_mm.registry import MODELS

from .feature_encoders import OnnxEncoder, TransformersEncoder, one_line
from .frozen_teacher import FrozenTeacher, check_multiple

MAX_PREFIX_TOKENS = 16  # class and register tokens that are believed without a word


@MODELS.register_module()
class FeatureTeacher(FrozenTeacher):
    """Patch tokens of a vision encoder of `transformers` (DINOv2, SigLIP, ...) or in an ONNX file.

    Width, grid and the number of tokens in front, for the class and as registers, which are
    dropped, are found by one image of zeros when the model is built.

    Args:
        source: Local folder of `transformers`, or an ONNX file. Needs the packages of
            requirements/teachers.txt.
        img_size: Side of the teacher's images.
        output: Name of the tensor to read, of an ONNX file only: one of its outputs (``None`` for
            the first) or any tensor within it.
        patch_size: Side of a patch; ``None`` to take it from the folder's config or else from the
            number of tokens.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ImportError: A package is missing; the message says what to install.
        ValueError: The source cannot be read, does not take images of ``img_size``, or gives no
            grid of tokens.
    """

    def __init__(
        self,
        source: str,
        img_size: int = 224,
        output: str | None = None,
        patch_size: int | None = None,
    ) -> None:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f'`source` of FeatureTeacher is {source!r}, which does not exist: give a folder of '
                '`transformers` or an ONNX file on this machine; nothing is downloaded here'
            )
        if patch_size is not None:
            check_multiple(img_size, patch_size, type(self).__name__)
        if path.is_dir():
            if output is not None:
                raise ValueError(
                    f'`output` of FeatureTeacher names a tensor of an ONNX file, but {source} is a '
                    f'folder: leave out output={output!r}'
                )
            encoder = TransformersEncoder(path, img_size)
        else:
            encoder = OnnxEncoder(path, img_size, output)
        tokens = _probe(encoder.eval(), img_size, source)
        patch_size = patch_size or _patch_size(encoder.patch_size, tokens, img_size, source)
        side = img_size // patch_size
        if side * side > tokens.shape[1]:
            raise ValueError(
                f'{source}: gives {tokens.shape[1]} tokens of an image of {img_size} pixels, fewer '
                f'than the {side} x {side} patches of `patch_size`={patch_size}'
            )
        super().__init__(
            encoder, img_size=img_size, patch_size=patch_size, embed_dims=tokens.shape[2]
        )


@torch.no_grad()
def _probe(encoder: torch.nn.Module, img_size: int, source: str) -> Tensor:
    """Tokens (1, N, C) of an image of zeros."""
    try:
        tokens = encoder(torch.zeros(1, 3, img_size, img_size))
    except Exception as error:  # of another library
        raise ValueError(
            f'{source}: does not take images of `img_size`={img_size} pixels: {one_line(error)}'
        ) from error
    if tokens.ndim != 3 or tokens.shape[0] != 1 or tokens.shape[2] == 1:
        raise ValueError(
            f'{source}: must give tokens of several channels, (1, N, C) or a map (1, C, h, w), of '
            f'an image, but gives {tuple(tokens.shape)} (as tokens); of an ONNX file name another '
            'tensor by `output`'
        )
    return tokens


def _patch_size(told: int | None, tokens: Tensor, img_size: int, source: str) -> int:
    """What the encoder tells if the tokens agree, else the largest square grid of tokens."""
    count = tokens.shape[1]
    if told and 0 <= count - (img_size // told) ** 2 <= MAX_PREFIX_TOKENS:
        check_multiple(img_size, told, 'FeatureTeacher')
        return told
    side = math.isqrt(count)
    if img_size % side or count - side * side > MAX_PREFIX_TOKENS:
        raise ValueError(
            f'{source}: gives {count} tokens of an image of {img_size} pixels, which is no square '
            'grid behind some class and register tokens: give `patch_size` of FeatureTeacher'
        )
    return img_size // side
