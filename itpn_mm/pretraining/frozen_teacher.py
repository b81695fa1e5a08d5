"""What all frozen teachers share: their weights stay out of the model that they teach."""

import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """An image encoder that gives the targets of a student and is never trained.

    The encoder is no submodule: its weights are in no state dict, optimiser, average or list of
    parameters, initialisation and gradient reduction pass them over, and the mode of the model does
    not reach them. They follow the model to a device or a precision, and into copies and pickles.

    Args:
        encoder: Gives tokens (B, N, D) of images (B, 3, S, S): any number of tokens for the whole
            image, such as a class token, then those of the patches, row-major. ``identity``, if it
            has one, is a text that tells it from encoders with the same weights.
        img_size: Side S of the images.
        patch_size: Side of a patch in pixels.
        embed_dims: Width D.
        dtype: ``'bfloat16'`` or ``'float16'`` to hold and run the encoder in half precision, which
            takes half the memory; ``None`` for float32.

    Raises:
        ValueError: ``img_size`` is not a multiple of ``patch_size``, or ``dtype`` is another.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        img_size: int,
        patch_size: int,
        embed_dims: int,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        check_multiple(img_size, patch_size, type(self).__name__)
        if dtype not in (None, 'bfloat16', 'float16'):
            raise ValueError(
                f"`dtype` of {type(self).__name__} must be 'bfloat16', 'float16' or None, but got "
                f'{dtype!r}'
            )
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self.img_size, self.patch_size, self.embed_dims = img_size, patch_size, embed_dims
        self.grid = (img_size // patch_size,) * 2
        # Past nn.Module.__setattr__, which would make it a submodule.
        object.__setattr__(self, 'encoder', encoder.eval().requires_grad_(False).to(self.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'FrozenTeacher':
        """Where `to`, `cuda`, `half` and the like all end."""
        super()._apply(fn, recurse)
        self.encoder._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Targets (B, h * w, D) of normalised images (B, 3, S, S).

        They are the encoder's tokens of the patches, layer-normalised without affine parameters, in
        float32 or better.

        Raises:
            ValueError: The images have another size.
        """
        size, (h, w) = self.img_size, self.grid
        if tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(
                f'{type(self).__name__} was built for images (B, 3, {size}, {size}), but got '
                f'{tuple(images.shape)}: set `second_size={size}` in the pipeline, or '
                '`teacher.img_size` to the size of the images'
            )
        tokens = self.encoder(images.to(self.dtype or images.dtype))[:, -h * w :]
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        return F.layer_norm(tokens, (self.embed_dims,), eps=1e-5)

    def fingerprint(self) -> str:
        """Digest of all that decides what the teacher makes of an image."""
        settings = (type(self).__name__, self.img_size, self.patch_size, self.embed_dims)
        identity = getattr(self.encoder, 'identity', '')
        digest = hashlib.sha256(repr((settings, identity)).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()

    def extra_repr(self) -> str:
        return (
            f'{type(self.encoder).__name__}, img_size={self.img_size}, grid={self.grid}, '
            f'embed_dims={self.embed_dims}'
        )


def check_multiple(img_size: int, patch_size: int, owner: str) -> None:
    """Raise ValueError, with the sizes that fit, unless images are whole patches."""
    if not isinstance(img_size, int) or img_size < 1:
        raise ValueError(
            f'`img_size` of {owner} must be a whole number of at least 1, but got {img_size!r}'
        )
    if img_size % patch_size:
        n = img_size // patch_size
        fits = ' or '.join(f'{k * patch_size} ({k} x {k} tokens)' for k in (n, n + 1) if k)
        raise ValueError(
            f'`img_size` of {owner} must be a multiple of its patches of {patch_size} pixels, but '
            f'got {img_size}: use {fits}'
        )


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, row-major, on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
