"""Small backbones, pyramids and files in both layouts."""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.necks import TransformerPyramidNeck
from tests.golden import load, under

KEYS = Path(__file__).parents[1] / 'data' / 'keys'
# that of the golden fixtures, of which a1 is a pre-training model with both parts and a decoder
ARCH = dict(embed_dims=32, depths=(1, 1, 2), num_heads=2)


def backbone(arch: dict | None = None, **kwargs) -> HiViT:
    """A backbone for images of 64 pixels."""
    return HiViT(arch or ARCH, **{'img_size': 64, **kwargs})


def fast_backbone(arch: dict | None = None, **kwargs) -> FastiTPN:
    """A Fast-iTPN backbone for images of 64 pixels."""
    return FastiTPN(arch or ARCH, **{'img_size': 64, **kwargs})


def neck(**kwargs) -> TransformerPyramidNeck:
    """The pyramid on such a backbone."""
    return TransformerPyramidNeck(**{'in_channels': (8, 16, 32), 'out_channels': 16, **kwargs})


def state_of(**parts: nn.Module) -> dict[str, Tensor]:
    """State dict of a model with these parts."""
    return {f'{part}.{k}': v for part, m in parts.items() for k, v in m.state_dict().items()}


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


def save_ours(path: Path, **parts: nn.Module) -> Path:
    """Write a file in our layout: each part's weights under its name."""
    torch.save(dict(state_dict=state_of(**parts)), path)
    return path


def read_table(name: str) -> dict[str, Tensor]:
    """Names and shapes of one of the authors' models, without memory."""
    shapes = json.loads((KEYS / f'{name}.json').read_text())
    return {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}


def fast_pretraining(conv: bool = True) -> dict[str, Tensor]:
    """A Fast-iTPN of CLIP pre-training with the names that a published log lists."""
    state = {
        key: tensor
        for key, tensor in authors_state('g03_fast_ls_meanpool').items()
        if not key.startswith(('fc_norm', 'head'))
    }
    dim, width, target = 32, 16, 24
    shapes = dict(norm=(dim,), lm_head=(target, dim), align_dim_16tofpn=(width, dim))
    shapes |= dict(align_dim_16to8=(width, dim // 2), align_dim_8to4=(width, dim // 4))
    for step, above in (('16to8', dim), ('8to4', width)):
        shapes[f'split_{step}.norm'] = (above,)
        shapes[f'split_{step}.reduction'] = (4 * width, above)
    for block in ('block_16to8.0', 'block_8to4.0', *(f'fpn_modules.{i}' for i in range(3))):
        shapes[f'{block}.norm2'] = (width,)
        shapes |= {f'{block}.mlp.fc1': (4 * width, width), f'{block}.mlp.fc2': (width, 4 * width)}
    for i, side in enumerate((1, 2, 4)):
        shapes |= {
            f'decoder_embed.{i}.0': (width,),
            f'decoder_embed.{i}.1': (dim // side**2, width),
        }
    state['mask_token'] = torch.randn(1, 1, dim)
    for name, shape in shapes.items():
        in_pyramid = len(shape) == 2 and not name.startswith(('lm_head', 'decoder_embed'))
        state[f'{name}.weight'] = torch.randn(*shape, *((1, 1) if conv and in_pyramid else ()))
        state[f'{name}.bias'] = torch.randn(shape[0])
    return state
