"""Backbones of other projects at the same input, with random weights: nothing is downloaded.

Each builder takes the (height, width) of the images and gives a module (B, 3, H, W) -> maps. It
raises ImportError where its project is not installed.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def _swin(size: tuple[int, int]) -> nn.Module:
    from mmdet.models import SwinTransformer

    return SwinTransformer(
        embed_dims=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window_size=7
    )


def _mmpretrain_vit(size: tuple[int, int]) -> nn.Module:
    """Its position embedding is interpolated in each pass, as a detector with it would."""
    from mmpretrain.models import VisionTransformer

    return VisionTransformer(arch='base', img_size=224, patch_size=16, out_type='featmap')


def _timm(name: str, **kwargs) -> Callable[[tuple[int, int]], nn.Module]:
    def make(size: tuple[int, int]) -> nn.Module:
        import timm

        return timm.create_model(
            name, pretrained=False, img_size=size, features_only=True, **kwargs
        )

    return make


PEERS: dict[str, Callable[[tuple[int, int]], nn.Module]] = {
    'Swin-B (mmdet)': _swin,
    'ViT-B/16 (mmpretrain)': _mmpretrain_vit,
    'ViT-B/16 (timm)': _timm('vit_base_patch16_224', out_indices=(-1,)),
    'Hiera-B (timm)': _timm('hiera_base_224'),
}
