"""The two models that are compared, and one set of weights for both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import itpn_mm.registry
from benchmarks.plain import PlainModel
from itpn_mm.backbones.hivit import HiViT

OUT_CHANNELS = 256
PYRAMID_DEPTH = 2
# (embed_dims, depths, num_heads) small enough for a test, with every kind of block
TINY_ARCH = dict(embed_dims=64, depths=(1, 1, 2), num_heads=2)
ARCHS = dict(HiViT.arch_zoo, test=TINY_ARCH)


class ShippedModel(nn.Module):
    """Backbone and neck of the package, built as a config builds them."""

    def __init__(self, arch: str | dict) -> None:
        super().__init__()
        build = itpn_mm.registry.MODELS.build
        self.backbone = build(dict(type='itpn_mm.HiViT', arch=arch))
        self.neck = build(
            dict(
                type='itpn_mm.TransformerPyramidNeck',
                in_channels=self.backbone.out_channels,
                out_channels=OUT_CHANNELS,
                depth=PYRAMID_DEPTH,
            )
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
            if 'norm' in name and name.endswith('weight'):
                noise = noise + 1
        parameter.data.copy_(noise)


def build_model(variant: str, arch: str) -> nn.Module:
    """Model `plain` or `ours` in evaluation mode; both always hold the same weights."""
    settings = dict(ARCHS[arch])
    if variant == 'ours':
        model = ShippedModel(settings)
        randomise(model)
    elif variant == 'plain':
        model = PlainModel(**settings, out_channels=OUT_CHANNELS, pyramid_depth=PYRAMID_DEPTH)
        model.load_state_dict(build_model('ours', arch).state_dict(), strict=True)
    else:
        raise ValueError(f"`variant` must be 'plain' or 'ours', but got {variant!r}")
    return model.eval()
