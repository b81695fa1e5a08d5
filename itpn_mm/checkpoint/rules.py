"""What each tensor of our layout is called in the authors' files, as data that reads both ways.

A rule pairs a name of ours with the name or names that hold the same values in a file of the
authors. Names are templates: ``<field>`` stands for one of :data:`FIELDS` and is equal on both
sides. The authors' list ``blocks`` holds the blocks of all three stages and the two merges between
them; rules call its entries ``stages.<stage>.<index>`` and ``merges.<index>`` on either side.

Fast-iTPN is written with 1 x 1 and 2 x 2 convolutions where ours has linear layers, and with
separate queries, keys and values (and gates) where ours are one matrix. A :class:`Change` says how
the tensors become one and, exactly, how that becomes them again.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = {
    'i': r'\d+',
    'stem': '[01]',
    'stage': '[012]',
    'kind': 'weight|bias',
    'layer': r'norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2',
    'axis': '[hw]',
    'branch': '[12]',
    'letter': '[qv]',
    'head': r'(?:rpn_head|roi_head|decode_head|auxiliary_head)\..+',
}


@dataclass(frozen=True)
class Change:
    """What happens to tensors on the way from the authors' layout (``join``) and back (``split``).

    Args:
        join: Tensors of the rule's names, in their order -> ours.
        split: Ours and how many tensors are wanted -> those tensors.
    """

    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor, int], Sequence[Tensor]]


def _from_conv(tensors: Sequence[Tensor]) -> Tensor:
    """(O, I, 1, 1) -> (O, I), a view; a matrix stays one."""
    (weight,) = tensors
    if weight.ndim == 4 and tuple(weight.shape[2:]) != (1, 1):
        raise ValueError(f'a 1 x 1 convolution was expected, but got {tuple(weight.shape)}')
    return weight.flatten(1) if weight.ndim == 4 else weight


def _from_merge(tensors: Sequence[Tensor]) -> Tensor:
    """(O, C, 2, 2) -> (O, 4C): our merge takes columns slowest, then rows, then channels."""
    return tensors[0].permute(0, 3, 2, 1).flatten(1)


SAME = Change(lambda tensors: tensors[0], lambda tensor, _: (tensor,))
JOIN = Change(torch.cat, lambda tensor, parts: tensor.chunk(parts))
CONV = Change(_from_conv, lambda tensor, _: (tensor[:, :, None, None],))
MERGE = Change(
    _from_merge, lambda tensor, _: (tensor.unflatten(1, (2, 2, -1)).permute(0, 3, 2, 1),)
)


@dataclass(frozen=True)
class Rule:
    """The tensor ``ours`` holds what the tensors ``authors`` hold, brought about by ``change``."""

    ours: str
    authors: tuple[str, ...]
    change: Change = SAME


@dataclass(frozen=True)
class Dialect:
    """Which of the authors' models a state dict belongs to.

    Args:
        fast: Fast-iTPN, not iTPN.
        fused_qkv: One matrix for queries, keys and values also in Fast-iTPN (there without sub-LN).
        swiglu: SwiGLU in stage 3 of Fast-iTPN.
        objective: ``'pixel'`` or ``'clip'`` pre-training; ``None`` for all else.
    """

    fast: bool = False
    fused_qkv: bool = True
    swiglu: bool = False
    objective: str | None = None


# What the two sides have for themselves, with the reason why it is left out on the way over.
AUTHORS_ONLY = {
    r'(.+\.)?relative_position(_high|_width)?_index': 'an index that the model computes'
}
OURS_ONLY = {
    r'(teacher|mfm_head)\..+': "a part that the authors' models do not have",
    r'backbone\.acceleration\..+': "acceleration, which the authors' models do not have",
}


def compile_template(template: str) -> re.Pattern:
    """A regular expression with a group for each field."""
    parts = re.split(r'<(\w+)>', template)
    return re.compile(
        ''.join(
            f'(?P<{part}>{FIELDS[part]})' if at % 2 else re.escape(part)
            for at, part in enumerate(parts)
        )
    )


def fill_template(template: str, fields: dict[str, str]) -> str:
    """The name that a template stands for."""
    return re.sub(r'<(\w+)>', lambda match: fields[match[1]], template)


def _affine(ours: str, authors: str, change: Change = SAME) -> tuple[Rule, Rule]:
    """Rules for the weight and the bias of one layer; ``change`` is the weight's."""
    return (
        Rule(f'{ours}.weight', (f'{authors}.weight',), change),
        Rule(f'{ours}.bias', (f'{authors}.bias',)),
    )


def _blocks(ours: str, authors: str) -> tuple[Rule, ...]:
    """Rules for the parameters of a block of iTPN."""
    return (
        Rule(f'{ours}.<layer>.<kind>', (f'{authors}.<layer>.<kind>',)),
        *_scale_and_position(ours, authors),
        Rule(f'{ours}.attn.rel_pos.table_<axis>', (f'{authors}.attn.rel_pos_<axis>',)),
    )


def _scale_and_position(ours: str, authors: str) -> tuple[Rule, ...]:
    return (
        Rule(f'{ours}.ls<branch>.gamma', (f'{authors}.gamma_<branch>',)),
        Rule(f'{ours}.attn.rel_pos.table', (f'{authors}.attn.relative_position_bias_table',)),
    )


def _conv_blocks(ours: str, authors: str) -> tuple[Rule, ...]:
    """Rules for a block of Fast-iTPN that is a channel MLP written as 1 x 1 convolutions."""
    return (
        *_affine(f'{ours}.norm2', f'{authors}.norm2'),
        *_affine(f'{ours}.mlp.fc1', f'{authors}.mlp.fc1', CONV),
        *_affine(f'{ours}.mlp.norm', f'{authors}.mlp.ffn_ln'),
        *_affine(f'{ours}.mlp.fc2', f'{authors}.mlp.fc2', CONV),
    )


def _fast_attention_blocks(dialect: Dialect) -> tuple[Rule, ...]:
    at = 'stages.2.<i>'
    ours = f'backbone.{at}'
    qkv = tuple(f'{at}.attn.{letter}_proj.weight' for letter in 'qkv')
    rules = (
        *_affine(f'{ours}.norm1', f'{at}.norm1'),
        *_affine(f'{ours}.norm2', f'{at}.norm2'),
        *_affine(f'{ours}.attn.proj', f'{at}.attn.proj'),
        Rule(f'{ours}.attn.qkv.<letter>_bias', (f'{at}.attn.<letter>_bias',)),
        Rule(f'{ours}.attn.qkv.weight', (f'{at}.attn.qkv.weight',))
        if dialect.fused_qkv
        else Rule(f'{ours}.attn.qkv.weight', qkv, JOIN),
        *_scale_and_position(ours, at),
        *_affine(f'{ours}.mlp.norm', f'{at}.mlp.ffn_ln'),
    )
    if dialect.swiglu:
        gate_and_value = (f'{at}.mlp.w1.<kind>', f'{at}.mlp.w2.<kind>')
        return (
            *rules,
            Rule(f'{ours}.mlp.fc1.<kind>', gate_and_value, JOIN),
            Rule(f'{ours}.mlp.fc2.<kind>', (f'{at}.mlp.w3.<kind>',)),
        )
    return (
        *rules,
        *(r for fc in ('fc1', 'fc2') for r in _affine(f'{ours}.mlp.{fc}', f'{at}.mlp.{fc}')),
    )


def _backbone(dialect: Dialect) -> tuple[Rule, ...]:
    common = (
        *_affine('backbone.patch_embed.proj', 'patch_embed.proj'),
        *_affine('backbone.patch_embed.norm', 'patch_embed.norm'),
        *_affine('backbone.merges.<stem>.norm', 'merges.<stem>.norm'),
    )
    if not dialect.fast:
        merge = 'merges.<stem>.reduction.weight'
        return (
            *common,
            Rule('backbone.pos_embed', ('absolute_pos_embed',)),
            Rule(f'backbone.{merge}', (merge,)),
            *_blocks('backbone.stages.<stage>.<i>', 'stages.<stage>.<i>'),
        )
    shared = 'rel_pos_bias.relative_position_bias'
    return (
        *common,
        Rule('backbone.cls_token', ('cls_token',)),
        Rule('backbone.pos_embed', ('pos_embed',)),
        Rule('backbone.rel_pos.table', (f'{shared}_table',)),
        Rule('backbone.rel_pos.table_h', (f'{shared}_for_high',)),
        Rule('backbone.rel_pos.table_w', (f'{shared}_for_width',)),
        *_affine('backbone.merges.<stem>.reduction', 'merges.<stem>.reduction', MERGE),
        *_conv_blocks('backbone.stages.<stem>.<i>', 'stages.<stem>.<i>'),
        *_fast_attention_blocks(dialect),
    )


def _neck(dialect: Dialect) -> tuple[Rule, ...]:
    """Rules of the pyramid; that of Fast-iTPN is known from a log only, and seems convolutional."""
    blocks, weight = (_conv_blocks, CONV) if dialect.fast else (_blocks, SAME)
    laterals = (('16tofpn', 'p16'), ('16to8', 'p8'), ('8to4', 'p4'))
    rules = [
        r for s, p in laterals for r in _affine(f'neck.laterals.{p}', f'align_dim_{s}', weight)
    ]
    for step, level in laterals[1:]:
        rules += _affine(f'neck.splits.{level}.norm', f'split_{step}.norm')
        rules += _affine(f'neck.splits.{level}.expand', f'split_{step}.reduction', weight)
        rules += blocks(f'neck.blocks.{level}.<i>', f'block_{step}.<i>')
    for i, level in enumerate(('p16', 'p8', 'p4')):
        rules += blocks(f'neck.outputs.{level}', f'fpn_modules.{i}')
    return tuple(rules)


_EMBEDS: tuple[Rule, ...] = tuple(
    rule
    for i, level in enumerate(('p16', 'p8', 'p4'))
    for j, part in enumerate(('norm', 'proj'))
    for rule in _affine(f'decoder.embeds.{level}.{part}', f'decoder_embed.{i}.{j}')
)
# The same names of the authors mean other things in each: in CLIP pre-training the mask token
# replaces tokens of the backbone, and `norm` is the decoder's; in a classifier it is that before
# the mean over positions.
_OBJECTIVES: dict[str | None, tuple[Rule, ...]] = {
    'pixel': (
        *_EMBEDS,
        Rule('decoder.mask_token', ('mask_token',)),
        Rule('decoder.pos_embed', ('decoder_pos_embed',)),
        *_blocks('decoder.blocks.<i>', 'decoder_blocks.<i>'),
        *_affine('decoder.norm', 'decoder_norm'),
        *_affine('head.pred', 'decoder_pred'),
    ),
    'clip': (
        *_EMBEDS,
        Rule('mask_token', ('mask_token',)),
        *_affine('decoder.norm', 'norm'),
        *_affine('head.pred', 'lm_head'),
        *_blocks('aux_head.blocks.<i>', 'cls_pt_layers.<i>'),
        *_affine('aux_head.norm', 'norm_cls'),
        *_affine('aux_head.pred', 'lm_cls_head'),
    ),
    None: _affine('neck.pre_norm', 'norm'),
}

_DOWNSTREAM: tuple[Rule, ...] = (
    *_affine('neck.norm', 'fc_norm'),
    *_affine('head.fc', 'head'),
    # heads of the authors' mmdet and mmseg models stand beside the backbone and keep their names
    Rule('<head>', ('<head>',)),
)


@functools.cache
def rules_of(dialect: Dialect) -> tuple[Rule, ...]:
    """All rules of one of the authors' models."""
    return (
        *_backbone(dialect),
        *_neck(dialect),
        *_DOWNSTREAM,
        *_OBJECTIVES[dialect.objective],
    )
