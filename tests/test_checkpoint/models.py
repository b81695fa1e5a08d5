"""Small backbones, pyramids and files in both layouts."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from itpn_mm.backbones import HiViT
from itpn_mm.necks import TransformerPyramidNeck
from tests.golden import load, under

# that of the golden fixtures, of which a1 is a pre-training model with both parts and a decoder
ARCH = dict(embed_dims=32, depths=(1, 1, 2), num_heads=2)


def backbone(arch: dict | None = None, **kwargs) -> HiViT:
    """A backbone for images of 64 pixels."""
    return HiViT(arch or ARCH, **{'img_size': 64, **kwargs})


def neck(**kwargs) -> TransformerPyramidNeck:
    """The pyramid on such a backbone."""
    return TransformerPyramidNeck(**{'in_channels': (8, 16, 32), 'out_channels': 16, **kwargs})


def pretrained(path: Path, prefix: str | None = None) -> dict:
    """An `init_cfg` that loads a file."""
    cfg = dict(type='Pretrained', checkpoint=str(path))
    return cfg if prefix is None else {**cfg, 'prefix': prefix}


def authors_state(name: str = 'a1_pixel_pretrain') -> dict[str, Tensor]:
    """Weights of a golden fixture, under the authors' names."""
    return under(load(name), 'sd/')


def save_authors(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a file as the authors' pre-training script does."""
    args = argparse.Namespace(batch_size=64, output_dir=Path('out'))
    torch.save(dict(model=state, optimizer={'state': {}}, epoch=3, scaler={}, args=args), path)
    return path


def save_ours(path: Path, **parts: torch.nn.Module) -> Path:
    """Write a file in our layout: each part's weights under its name."""
    state = {f'{part}.{k}': v for part, m in parts.items() for k, v in m.state_dict().items()}
    torch.save(dict(state_dict=state), path)
    return path
