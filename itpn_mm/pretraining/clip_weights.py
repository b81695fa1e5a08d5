"""Reading the image tower of a CLIP model: OpenAI's files and folders of `transformers`."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from itpn_mm.checkpoint.io import read_checkpoint
from itpn_mm.checkpoint.report import shorten

from .torchscript import is_torchscript, read_torchscript

# Names on the left, as regular expressions; on the right those of mmpretrain's VisionTransformer.
Names = Sequence[tuple[str, str]]
OPENAI_NAMES: Names = (
    (r'class_embedding', 'cls_token'),
    (r'positional_embedding', 'pos_embed'),
    (r'conv1\.weight', 'patch_embed.projection.weight'),
    (r'ln_pre\.(\w+)', r'pre_norm.\1'),
    (r'ln_post\.(\w+)', r'ln1.\1'),
    (r'transformer\.resblocks\.(\d+)\.ln_([12])\.(\w+)', r'layers.\1.ln\2.\3'),
    (r'transformer\.resblocks\.(\d+)\.attn\.in_proj_(\w+)', r'layers.\1.attn.qkv.\2'),
    (r'transformer\.resblocks\.(\d+)\.attn\.out_proj\.(\w+)', r'layers.\1.attn.proj.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(\w+)', r'layers.\1.ffn.layers.0.0.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(\w+)', r'layers.\1.ffn.layers.1.\2'),
    (r'proj', 'proj'),
)
TRANSFORMERS_NAMES: Names = (
    (r'embeddings\.class_embedding', 'cls_token'),
    (r'embeddings\.position_embedding\.weight', 'pos_embed'),
    (r'embeddings\.patch_embedding\.weight', 'patch_embed.projection.weight'),
    (r'pre_layrnorm\.(\w+)', r'pre_norm.\1'),  # spelled so there
    (r'post_layernorm\.(\w+)', r'ln1.\1'),
    (r'encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)', r'layers.\1.ln\2.\3'),
    (r'encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)', r'layers.\1.attn.\2.\3'),
    (r'encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)', r'layers.\1.attn.proj.\2'),
    (r'encoder\.layers\.(\d+)\.mlp\.fc1\.(\w+)', r'layers.\1.ffn.layers.0.0.\2'),
    (r'encoder\.layers\.(\d+)\.mlp\.fc2\.(\w+)', r'layers.\1.ffn.layers.1.\2'),
    (r'visual_projection\.weight', 'proj'),
)
# Beside the image tower: the text tower, and an index that older versions of transformers saved.
OTHER_NAMES = re.compile(
    r'logit_scale|logit_bias|text_model\..*|text_projection.*|transformer\..*|token_embedding\..*'
    r'|positional_embedding|ln_final\..*|attn_mask|(vision_model\.)?embeddings\.position_ids'
    r'|input_resolution|context_length|vocab_size'
)
HEAD_DIM = 64  # of all of OpenAI's models; their files do not tell it
WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin')
WHAT_TO_FETCH = (
    "fetch OpenAI's `ViT-B-16.pt` or `ViT-L-14.pt`, or a folder such as "
    '`openai/clip-vit-base-patch16` with config.json and model.safetensors, and give its path '
    '(configs/pretraining/README.md, "Teachers"); nothing is downloaded here'
)


@dataclass(frozen=True)
class CLIPVision:
    """The image tower of a CLIP model.

    Attributes:
        state: Weights in float32, under the names of mmpretrain's VisionTransformer.
        proj: Projection (width, output width), or ``None`` if the file has none.
        num_heads: Number of heads.
        activation: ``'quick_gelu'`` or ``'gelu'``.
        norm_eps: Epsilon of the LayerNorms.
    """

    state: dict[str, Tensor]
    proj: Tensor | None
    num_heads: int
    activation: str = 'quick_gelu'
    norm_eps: float = 1e-5


def read_clip(path: str | Path) -> CLIPVision:
    """Read an OpenAI file (TorchScript or state dict) or a `transformers` folder, running nothing.

    Raises:
        FileNotFoundError: There is no such file or folder, or no weights in the folder.
        ValueError: It is damaged, unsafe, or no CLIP model with a ViT as image tower.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f'`checkpoint` of CLIPTeacher is {str(path)!r}, which does not exist: {WHAT_TO_FETCH}'
        )
    return _read_folder(path) if path.is_dir() else _read_openai(path)


def _read_openai(path: Path) -> CLIPVision:
    state = read_torchscript(path) if is_torchscript(path) else read_checkpoint(path)
    named = _rename(state, 'visual.', OPENAI_NAMES, path)
    width = named['cls_token'].shape[-1]
    if width % HEAD_DIM:
        raise ValueError(
            f'{path}: width {width} of the image tower is no multiple of {HEAD_DIM}, the width of '
            "a head in OpenAI's models; give a `transformers` folder, which tells `num_heads`"
        )
    return CLIPVision(named, named.pop('proj', None), width // HEAD_DIM)


def _read_folder(path: Path) -> CLIPVision:
    config_file = path / 'config.json'
    if not config_file.is_file():
        raise FileNotFoundError(f'{path}: no config.json in the folder: {WHAT_TO_FETCH}')
    try:
        config = json.loads(config_file.read_text())
        vision = config.get('vision_config', config)
        num_heads = int(vision['num_attention_heads'])
        activation = vision.get('hidden_act', 'quick_gelu')
        norm_eps = float(vision.get('layer_norm_eps', 1e-5))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f'{config_file}: not the config of a CLIP model ({type(error).__name__}: {error})'
        ) from error
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f'{path}: none of {WEIGHT_FILES} in the folder: {WHAT_TO_FETCH}')
    state = {
        name.removeprefix('vision_model.'): tensor
        for name, tensor in read_checkpoint(weights).items()
    }
    named = _rename(state, '', TRANSFORMERS_NAMES, weights)
    for name in [name for name in named if '.attn.q.' in name]:
        parts = [named.pop(name.replace('.attn.q.', f'.attn.{part}.'), None) for part in 'qkv']
        if any(part is None for part in parts):
            raise ValueError(f'{weights}: q, k or v is missing beside `{name}`')
        named[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat(parts)
    proj = named.pop('proj', None)
    return CLIPVision(named, None if proj is None else proj.t(), num_heads, activation, norm_eps)


def _rename(state: dict[str, Tensor], prefix: str, names: Names, source: Path) -> dict[str, Tensor]:
    """The image tower in float32 under mmpretrain's names; every other name must be a known one."""
    if prefix and not any(name.startswith(prefix) for name in state):
        prefix = ''  # the tower alone
    rules = [(re.compile(re.escape(prefix) + old), new) for old, new in names]
    named, unknown = {}, []
    for name, tensor in state.items():
        for old, new in rules:
            if found := old.fullmatch(name):
                named[found.expand(new)] = tensor.float()
                break
        else:
            if not OTHER_NAMES.fullmatch(name):
                unknown.append(name)
    essential = ('cls_token', 'pos_embed', 'patch_embed.projection.weight', 'layers.0.ln1.weight')
    if unknown or not all(name in named for name in essential):
        raise ValueError(
            f'{source}: not a CLIP model with a ViT as image tower (unknown names: '
            f'{shorten(unknown) or "none"}); {WHAT_TO_FETCH}'
        )
    return named
