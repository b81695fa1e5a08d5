"""Backbones of detectron2's files, ResNet and Swin Transformer, with the names of OpenMMLab."""

import re

import torch
from torch import Tensor

from .architecture import State
from .report import RemapReport

_BOTTLENECK = re.compile(
    r'(?:stem\.(?P<stem>conv1)|res(?P<stage>[2-5])\.(?P<block>\d+)\.'
    r'(?P<conv>conv[123]|shortcut))(?P<norm>\.norm)?\.(?P<leaf>\w+)'
)
_KIND = '(weight|bias)'
_SWIN = {
    rf'patch_embed\.proj\.{_KIND}': r'patch_embed.projection.\1',
    rf'patch_embed\.norm\.{_KIND}': r'patch_embed.norm.\1',
    rf'norm([0-3])\.{_KIND}': r'norm\1.\2',
    rf'layers\.(\d)\.blocks\.(\d+)\.(norm[12])\.{_KIND}': r'stages.\1.blocks.\2.\3.\4',
    rf'layers\.(\d)\.blocks\.(\d+)\.attn\.((?:qkv|proj)\.{_KIND}|relative_position_\w+)': (
        r'stages.\1.blocks.\2.attn.w_msa.\3'
    ),
    rf'layers\.(\d)\.blocks\.(\d+)\.mlp\.fc1\.{_KIND}': r'stages.\1.blocks.\2.ffn.layers.0.0.\3',
    rf'layers\.(\d)\.blocks\.(\d+)\.mlp\.fc2\.{_KIND}': r'stages.\1.blocks.\2.ffn.layers.1.\3',
    rf'layers\.(\d)\.downsample\.(reduction|norm)\.{_KIND}': r'stages.\1.downsample.\2.\3',
}


def convert_backbone(state: State, report: RemapReport) -> dict[str, Tensor]:
    """The backbone of a file of detectron2, with names `backbone.*` of mmdet and mmseg.

    Args:
        state: The file.
        report: Takes down what becomes of each name.
    """
    parts = {name: name.removeprefix('backbone.') for name in state if name.startswith('backbone.')}
    swin = any(name.startswith('layers.') for name in parts.values())
    out = {}
    for name, bare in parts.items():
        target = _name_in_swin(bare) if swin else _name_in_resnet(bare)
        if target is None:
            report.unexplained.append(name)
            continue
        report.renamed[name] = f'backbone.{target}'
        out[f'backbone.{target}'] = _reorder(state[name]) if '.downsample.' in bare else state[name]
        if target.endswith('.running_var'):  # detectron2 keeps its statistics as they are
            counter = f'backbone.{target.replace("running_var", "num_batches_tracked")}'
            out[counter] = torch.zeros((), dtype=torch.long)
            report.created.append(counter)
    return out


def _name_in_resnet(name: str) -> str | None:
    match = _BOTTLENECK.fullmatch(name)
    if match is None:
        return None
    place = '' if match['stem'] else f'layer{int(match["stage"]) - 1}.{match["block"]}.'
    conv = match['stem'] or match['conv']
    if conv == 'shortcut':
        module = f'downsample.{int(bool(match["norm"]))}'
    else:
        module = conv.replace('conv', 'bn') if match['norm'] else conv
    return f'{place}{module}.{match["leaf"]}'


def _name_in_swin(name: str) -> str | None:
    for pattern, template in _SWIN.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return None


def _reorder(tensor: Tensor) -> Tensor:
    """Inputs (..., 4C) of a merge of four tokens, in the order of mm.

    The channels of one token after the other, the tokens by columns, become the tokens of one
    channel after the other, the tokens by rows.
    """
    return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].mT.flatten(-2)
