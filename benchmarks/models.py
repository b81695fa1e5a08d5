"""The models by name, the plain and the shipped one of each with the same weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainModel
from benchmarks.plain_fast_itpn import PlainFastiTPN, plain_state
from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.necks import TransformerPyramidNeck

OUT_CHANNELS = 256
PYRAMID_DEPTH = 2
# (embed_dims, depths, num_heads) small enough for a test, with every kind of block
TINY_ARCH = dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)
SIZES = ('tiny', 'small', 'base', 'large')
FAMILIES = dict(hivit=HiViT, fastitpn=FastiTPN)
MODELS = {
    f'{family}-{size}': arch
    for family, kind in FAMILIES.items()
    for size, arch in ({size: kind.arch_zoo[size] for size in SIZES} | dict(test=TINY_ARCH)).items()
}


class HiViTWithPyramid(nn.Module):
    """Backbone and neck of the package, as a detector uses them."""

    def __init__(self, arch: dict) -> None:
        super().__init__()
        self.backbone = HiViT(arch)
        self.neck = TransformerPyramidNeck(
            self.backbone.out_channels, OUT_CHANNELS, depth=PYRAMID_DEPTH
        )

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps at strides 4, 8, 16, 32, 64."""
        return self.neck(self.backbone(img))


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw all weights so that every branch matters: a wrong one then shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and 'pos_embed' not in name:
            noise = noise * parameter[0].numel() ** -0.5
        else:
            noise = noise * 0.1
            if ('norm' in name and name.endswith('weight')) or 'gamma' in name:
                noise = noise + 1
        parameter.data.copy_(noise)


def shipped(name: str) -> nn.Module:
    """A model of the package: HiViT with its pyramid, or the backbone FastiTPN."""
    arch = dict(MODELS[name])
    return HiViTWithPyramid(arch) if name.startswith('hivit-') else FastiTPN(arch)


def plain(name: str) -> nn.Module:
    """The same written as the formulas read."""
    arch = MODELS[name]
    if name.startswith('hivit-'):
        return PlainModel(**arch, out_channels=OUT_CHANNELS, pyramid_depth=PYRAMID_DEPTH)
    return PlainFastiTPN(**arch)


def build_model(variant: str, name: str) -> nn.Module:
    """Variant `plain` or `ours` of a model in evaluation mode; both hold the same weights."""
    if variant not in ('plain', 'ours'):
        raise ValueError(f"`variant` must be 'plain' or 'ours', but got {variant!r}")
    model = shipped(name)
    randomise(model)
    if variant == 'plain':
        state = model.state_dict()
        model = plain(name)
        convert = plain_state if isinstance(model, PlainFastiTPN) else dict
        model.load_state_dict(convert(state), strict=True)
    return model.eval()
