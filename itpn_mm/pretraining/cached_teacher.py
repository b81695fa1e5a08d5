"""A teacher whose features are kept on disk."""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from itpn_mm.registry import MODELS

from .frozen_teacher import tensor_bytes

FINGERPRINT_FILE = 'teacher.json'


@MODELS.register_module()
class CachedTeacher(nn.Module):
    """Keep the features that a teacher makes of each image, so that each is paid for once.

    The key is a digest of the very tensor that the teacher is given. A view that differs in one bit
    is another view: random crops are never given wrong features, and never found either. It pays
    for data with a fixed view, such as the whole image in the middle of every epoch.

    Args:
        teacher: Config of the teacher, :class:`CLIPTeacher` or :class:`FeatureTeacher`.
        cache_dir: Folder of the features; made if it is not there. Several processes may share it.
        max_images: Number of images from which on no more are added; ``None`` for no bound. The
            processes of a run share what is left when they start.
        half: Keep features in float16, and give those values also before they are kept.

    Raises:
        ValueError: ``max_images`` is below 1, ``cache_dir`` holds the features of another teacher
            or in another precision, or files that are none.
    """

    def __init__(
        self, teacher: dict, cache_dir: str, max_images: int | None = None, half: bool = False
    ) -> None:
        super().__init__()
        if max_images is not None and max_images < 1:
            raise ValueError(
                f'`max_images` of CachedTeacher must be at least 1 or None, but got {max_images}'
            )
        self.teacher = MODELS.build(teacher)
        self.embed_dims, self.grid = self.teacher.embed_dims, self.teacher.grid
        self.img_size, self.patch_size = self.teacher.img_size, self.teacher.patch_size
        self.cache_dir, self.half_precision = Path(cache_dir).expanduser(), half
        self._claim()
        self._room = None  # images that this process may still add
        if max_images is not None:
            kept = sum(1 for _ in self.cache_dir.glob('*/*.safetensors'))
            self._room = max(0, max_images - kept) // get_world_size()

    def _claim(self) -> None:
        """Mark the folder as that of this teacher, or find it marked so."""
        dtype = 'float16' if self.half_precision else 'float32'
        mark = dict(teacher=self.teacher.fingerprint(), dtype=dtype)
        file = self.cache_dir / FINGERPRINT_FILE
        if not file.exists():
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            if any(not path.name.endswith('.tmp') for path in self.cache_dir.iterdir()):
                if not file.exists():  # another process may just have made it
                    raise ValueError(
                        f'`cache_dir` of CachedTeacher, {self.cache_dir}, holds other files: give '
                        'an empty or a new folder'
                    )
            else:
                _write(file, json.dumps(mark).encode())
        try:
            found = json.loads(file.read_text())
        except ValueError:
            found = None
        if found != mark:
            raise ValueError(
                f'`cache_dir` of CachedTeacher, {self.cache_dir}, holds features of another '
                f'teacher, image size or precision ({FINGERPRINT_FILE} has {found}, this one is '
                f'{mark}): give another folder or remove this one'
            )

    def fingerprint(self) -> str:
        """That of the teacher."""
        return self.teacher.fingerprint()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Targets (B, h * w, D) of normalised images (B, 3, S, S)."""
        files = [self._file(image) for image in images.detach().cpu()]
        kept = {i: found for i, file in enumerate(files) if (found := self._read(file)) is not None}
        missing = [i for i in range(len(files)) if i not in kept]
        if missing:
            made = self.teacher(images[missing])
            made = made.half() if self.half_precision else made
            for i, features in zip(missing, made.cpu()):
                self._keep(files[i], features)
                kept[i] = features
        targets = torch.stack([kept[i] for i in range(len(files))]).to(images.device)
        return targets.to(torch.promote_types(targets.dtype, torch.float32))

    def _file(self, image: Tensor) -> Path:
        digest = hashlib.sha256(f'{image.dtype} {tuple(image.shape)}'.encode())
        digest.update(tensor_bytes(image))
        key = digest.hexdigest()
        return self.cache_dir / key[:2] / f'{key[2:]}.safetensors'

    def _read(self, file: Path) -> Tensor | None:
        try:
            return load(file.read_bytes())['features']
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError) as error:
            print_log(f'{file}: damaged ({error}); made again', 'current', logging.WARNING)
            file.unlink(missing_ok=True)
            return None

    def _keep(self, file: Path, features: Tensor) -> None:
        if self._room == 0:
            print_log(
                f'{self.cache_dir}: `max_images` of CachedTeacher is reached; features of more '
                'images are not kept',
                'current',
                logging.WARNING,
            )
        if self._room is not None:
            self._room -= 1
            if self._room < 0:
                return
        file.parent.mkdir(exist_ok=True)
        _write(file, save({'features': features.contiguous()}))


def _write(file: Path, data: bytes) -> None:
    """Write a whole file or none, whoever else writes it."""
    handle, name = tempfile.mkstemp(suffix='.tmp', dir=file.parent)
    try:
        with os.fdopen(handle, 'wb') as temporary:
            temporary.write(data)
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
