"""Which config of `configs/pretraining/` a model starts from; what a teacher's file tells."""

from pathlib import Path
from typing import NamedTuple

from itpn_mm.pretraining.clip_weights import read_clip
from itpn_mm.recipes import DECAY_RATES

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'pretraining'
SMALL = 'hivit-demo'  # 1/6 of the tiny one, for a CPU
SIZES = tuple(DECAY_RATES)
MODELS = (SMALL, *(f'{family}-{size}' for family in ('hivit', 'fastitpn') for size in SIZES))
PATCH = 16  # of all of them


class Teacher(NamedTuple):
    """A CLIP image encoder: its file or folder, side of its patches, width of its tokens."""

    path: Path
    patch: int
    width: int


def base_config(model: str, teacher: Teacher | None) -> Path:
    """The config that `model` starts from.

    Fast-iTPN with pixels starts from HiViT's of the same widths.

    Raises:
        ValueError: `model` is unknown, or there is no such pre-training of it.
    """
    if model not in MODELS:
        raise ValueError(f'--model must be one of {", ".join(MODELS)}, but got {model!r}')
    if model == SMALL:
        if teacher is not None:
            raise ValueError(f'--teacher needs a --model other than {SMALL!r}, such as hivit-tiny')
        return CONFIGS / 'itpn-pixel_hivit-demo-p16_1xb32-coslr-24e_photographs.py'
    family, size = model.split('-')
    if teacher is None:
        return CONFIGS / f'itpn-pixel_hivit-{size}-p16_8xb512-amp-coslr-300e_in1k.py'
    epochs = 300 if family == 'hivit' else 1600
    return CONFIGS / f'itpn-clip-l_{model}-p16_8xb256-amp-coslr-{epochs}e_in1k.py'


def read_teacher(path: Path) -> Teacher:
    """What a student has to know of a CLIP image encoder.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is no CLIP model with a ViT as image tower.
    """
    clip = read_clip(path)
    width, _, patch, _ = clip.state['patch_embed.projection.weight'].shape
    return Teacher(path, patch, width if clip.proj is None else clip.proj.shape[1])
