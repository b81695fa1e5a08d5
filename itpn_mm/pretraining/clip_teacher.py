"""The image encoder of CLIP as teacher (Section 3.4, option ii)."""

import math
import re
from pathlib import Path

import torch
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from itpn_mm.layers import resize_pos_embed
from itpn_mm.registry import MODELS

from .clip_weights import CLIPVision, read_clip
from .frozen_teacher import FrozenTeacher, check_multiple

ACTIVATIONS = {'quick_gelu': dict(type='mmpretrain.QuickGELU'), 'gelu': dict(type='GELU')}
# With which the released iTPN resizes the teacher's positions too.
INTERPOLATE_OFFSET = 0.1


class CLIPTower(nn.Module):
    """Tokens (B, 1 + h * w, D) of images, after the last LayerNorm and the projection."""

    def __init__(self, vit: VisionTransformer, proj: Tensor | None, identity: str) -> None:
        super().__init__()
        self.vit = vit
        self.proj = None if proj is None else nn.Parameter(proj)
        self.identity = identity

    def forward(self, images: Tensor) -> Tensor:
        [tokens] = self.vit(images)
        return tokens if self.proj is None else tokens @ self.proj


@MODELS.register_module()
class CLIPTeacher(FrozenTeacher):
    """Patch tokens of a frozen CLIP image encoder, in the shared space of images and texts.

    Widths, depth and patch are read off the file. Its position embedding is resampled if
    ``img_size`` asks for another grid, as in the released iTPN.

    Args:
        checkpoint: OpenAI's file (TorchScript archive or state dict; any file with these names), or
            a folder of `transformers` (config.json and model.safetensors or pytorch_model.bin).
            Nothing in it is run, and `transformers` is not needed.
        img_size: Side of the teacher's images. The grid must be that of the student: 224 for
            patches of 16 and 196 for patches of 14 beside a student of 224, 224 for patches of 14
            beside a student of 256.
        activation: ``'quick_gelu'`` or ``'gelu'``; ``None`` for what the folder's config says, and
            ``'quick_gelu'``, OpenAI's, for a file. Files of this layout by others, such as
            OpenCLIP's trained on LAION, need ``'gelu'``.
        dtype: As of :class:`FrozenTeacher`.

    Raises:
        FileNotFoundError: There is no such file or folder; the message says what to fetch.
        ValueError: It is damaged or no CLIP model with a ViT as image tower, ``img_size`` is not a
            multiple of its patch, or ``activation`` is unknown.
    """

    def __init__(
        self,
        checkpoint: str,
        img_size: int = 224,
        activation: str | None = None,
        dtype: str | None = None,
    ) -> None:
        if activation not in (None, *ACTIVATIONS):
            raise ValueError(
                f'`activation` of CLIPTeacher must be one of {tuple(ACTIVATIONS)} or None, but got '
                f'{activation!r}'
            )
        clip = read_clip(checkpoint)
        activation = activation or clip.activation
        if activation not in ACTIVATIONS:
            raise ValueError(
                f'{checkpoint}: its activation {activation!r} is none of {tuple(ACTIVATIONS)}'
            )
        width, _, patch_size, _ = clip.state['patch_embed.projection.weight'].shape
        check_multiple(img_size, patch_size, type(self).__name__)
        vit = _build_vit(clip, img_size, activation, checkpoint)
        identity = f'{activation} heads={clip.num_heads} eps={clip.norm_eps}'
        super().__init__(
            CLIPTower(vit, clip.proj, identity),
            img_size=img_size,
            patch_size=patch_size,
            embed_dims=width if clip.proj is None else clip.proj.shape[1],
            dtype=dtype,
        )


def _build_vit(
    clip: CLIPVision, img_size: int, activation: str, source: str | Path
) -> VisionTransformer:
    state = dict(clip.state)
    width, _, patch_size, _ = state['patch_embed.projection.weight'].shape
    blocks = {int(found[1]) for name in state if (found := re.match(r'layers\.(\d+)\.', name))}
    hidden = state.get('layers.0.ffn.layers.0.0.bias', torch.empty(0)).numel()
    state['cls_token'] = state['cls_token'].reshape(1, 1, width)
    state['pos_embed'] = _resize(state['pos_embed'], img_size // patch_size, source)
    with torch.device('meta'):  # initialising what is replaced would take seconds
        vit = VisionTransformer(
            dict(
                embed_dims=width,
                num_layers=len(blocks),
                num_heads=clip.num_heads,
                feedforward_channels=hidden,
            ),
            img_size=img_size,
            patch_size=patch_size,
            norm_cfg=dict(type='LN', eps=clip.norm_eps),
            layer_cfgs=dict(act_cfg=ACTIVATIONS[activation]),
            pre_norm=True,
            out_type='raw',
        )
    try:
        vit.load_state_dict(state, assign=True)
    except RuntimeError as error:
        text = ' '.join(str(error).split())
        raise ValueError(f'{source}: the image tower is incomplete: {text[:300]}') from error
    return vit


def _resize(pos_embed: Tensor, side: int, source: str | Path) -> Tensor:
    """Position embedding (1 + n * n, D) of the file -> (1, 1 + side * side, D)."""
    cls, patches = pos_embed[None, :1], pos_embed[None, 1:]
    n = math.isqrt(patches.shape[1])
    if n * n != patches.shape[1]:
        raise ValueError(
            f'{source}: its {patches.shape[1]} positions are not those of a square grid'
        )
    patches = resize_pos_embed(patches, (n, n), (side, side), INTERPOLATE_OFFSET)
    return torch.cat([cls, patches], dim=1)
