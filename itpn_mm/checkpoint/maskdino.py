"""Released MaskDINO weights, which have the names of detectron2, in the layout of our heads.

Levels are the finest first everywhere with us. The released models have two orders; in one the
encoder counts levels from the coarsest on, in the other the decoder does, and so do the tables with
a row for each level.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .architecture import State
from .detectron2 import convert_backbone
from .report import RemapReport, find_reason
from .rules import SAME, Change, Rule, compile_template, fill_template

HEAD_PARTS = ('panoptic_head', 'decode_head')  # of mmdet's detector, of mmseg's segmentor
READ_ONLY = "a MaskDINO is not written with its authors' names, only read"
HEADS, POINTS = 8, 4  # of deformable attention in every released model
_LEVELS = 'pixel_decoder.level_embed'
_PIXEL_DECODER, _PREDICTOR = 'sem_seg_head.pixel_decoder', 'sem_seg_head.predictor'
_DROPPED = {
    r'criterion\.empty_weight': 'class weights of the loss, which the config says',
    r'pixel_(mean|std)': 'of the data preprocessor, which the config says',
}
# Names of tensors that a file holds under a second name, too.
_ALIASES = (
    (r'(?:decoder\.)?bbox_embed\.\d+\.', '_bbox_embed.'),
    (r'decoder\.norm\.', 'decoder_norm.'),
)


def is_maskdino(state: State) -> bool:
    """Whether a state dict has the names of a released MaskDINO."""
    return f'{_PREDICTOR}._bbox_embed.layers.0.weight' in state


def head_part(state: State) -> str | None:
    """Name of the part of a state dict in our layout that is a MaskDINO's head."""
    return next((part for part in HEAD_PARTS if f'{part}.{_LEVELS}' in state), None)


def rename_head(
    state: State, report: RemapReport, part: str
) -> tuple[dict[str, Tensor], RemapReport]:
    """Let a MaskDINO's head be another part of the model.

    mmdet's is the `panoptic_head`, mmseg's the `decode_head`; either takes weights of one stage and
    of two.

    Args:
        state: In our layout.
        report: How it came about.
        part: The name.

    Raises:
        ValueError: The name is neither.
    """
    if part not in HEAD_PARTS:
        raise ValueError(f'the part must be one of {HEAD_PARTS}, but got {part!r}')
    old = f'{head_part(state)}.'

    def place(name: str) -> str:
        return f'{part}.{name.removeprefix(old)}' if name.startswith(old) else name

    renamed = {theirs: place(ours) for theirs, ours in report.renamed.items()}
    state = {place(name): tensor for name, tensor in state.items()}
    return state, replace(report, renamed=renamed)


def _flip(trailing: int) -> Change:
    """Levels the other way round in (heads * levels * points * trailing, ...)."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        (tensor,) = tensors
        rows = tensor.unflatten(0, (HEADS, -1, POINTS * trailing))
        return rows.flip(1).flatten(0, 2)

    return Change(join, lambda tensor, _: (join((tensor,)),))


FLIP_OFFSETS, FLIP_WEIGHTS = _flip(2), _flip(1)
FLIP_ROWS = Change(lambda tensors: tensors[0].flip(0), lambda tensor, _: (tensor.flip(0),))


def _attention(ours: str, authors: str, flip: bool) -> tuple[Rule, ...]:
    """Rules of a deformable attention."""
    changes = dict(
        sampling_offsets=FLIP_OFFSETS if flip else SAME,
        attention_weights=FLIP_WEIGHTS if flip else SAME,
        value_proj=SAME,
        output_proj=SAME,
    )
    return tuple(
        Rule(f'{ours}.{leaf}.<kind>', (f'{authors}.{leaf}.<kind>',), change)
        for leaf, change in changes.items()
    )


def _rename(pairs: Mapping[str, str], ours: str, authors: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f'{ours}.{mine}.<kind>', (f'{authors}.{theirs}.<kind>',))
        for mine, theirs in pairs.items()
    )


def _rules(coarse_first: bool, levels: int, extra: int) -> tuple[Rule, ...]:
    """Rules for one order of levels.

    Args:
        coarse_first: Of the encoder; the decoder of such a model has the finest level first.
        levels: Of the encoder.
        extra: How many of them come from convolutions on the coarsest map.
    """
    pixel, query = 'pixel_decoder', 'predictor'
    maps = levels - extra
    order = [*reversed(range(maps)), *range(maps, levels)] if coarse_first else range(levels)
    projections = {
        f'{pixel}.input_convs.{mine}': f'{_PIXEL_DECODER}.input_proj.{theirs}'
        for mine, theirs in enumerate(order)
    }
    encoder = f'{_PIXEL_DECODER}.transformer.encoder.layers.<i>'
    decoder = f'{_PREDICTOR}.decoder.layers.<i>'
    mlp = {'ffn.layers.0.0': 'linear1', 'ffn.layers.1': 'linear2'}
    return (
        *(
            Rule(f'{mine}.{part}.<kind>', (f'{theirs}.{index}.<kind>',))
            for mine, theirs in projections.items()
            for index, part in enumerate(('conv', 'norm'))
        ),
        Rule(
            f'{pixel}.level_embed',
            (f'{_PIXEL_DECODER}.transformer.level_embed',),
            FLIP_ROWS if coarse_first else SAME,
        ),
        *_attention(f'{pixel}.layers.<i>.self_attn', f'{encoder}.self_attn', coarse_first),
        *_rename({'norms.0': 'norm1', 'norms.1': 'norm2'} | mlp, f'{pixel}.layers.<i>', encoder),
        *_rename(
            {'mask_features': 'mask_features'}
            | {f'{mine}.norm': f'{theirs}.norm' for mine, theirs in _FUSION.items()},
            pixel,
            _PIXEL_DECODER,
        ),
        *(
            Rule(f'{pixel}.{mine}.conv.weight', (f'{_PIXEL_DECODER}.{theirs}.weight',))
            for mine, theirs in _FUSION.items()
        ),
        Rule(
            f'{query}.decoder.layers.<i>.self_attn.attn.in_proj_<kind>',
            (f'{decoder}.self_attn.in_proj_<kind>',),
        ),
        *_rename(
            # the authors number norms otherwise than they use them
            {'self_attn.attn.out_proj': 'self_attn.out_proj', 'norms.0': 'norm2'}
            | {'norms.1': 'norm1', 'norms.2': 'norm3'}
            | mlp,
            f'{query}.decoder.layers.<i>',
            decoder,
        ),
        *_attention(
            f'{query}.decoder.layers.<i>.cross_attn', f'{decoder}.cross_attn', not coarse_first
        ),
        *_rename(_HEADS, query, _PREDICTOR),
    )


_FUSION = {'lateral': 'adapter_1', 'fuse': 'layer_1'}
_HEADS = {
    'decoder.ref_point_head.layers.<i>': 'decoder.ref_point_head.layers.<i>',
    'decoder.norm': 'decoder_norm',
    'memory_trans_fc': 'enc_output',
    'memory_trans_norm': 'enc_output_norm',
    'cls_head': 'class_embed',
    'mask_head.layers.<i>': 'mask_embed.layers.<i>',
    'box_head.layers.<i>': '_bbox_embed.layers.<i>',
    'denoiser.label_embed': 'label_enc',
    'query_content': 'query_feat',
    'query_boxes': 'query_embed',
}


def from_maskdino(state: State) -> tuple[dict[str, Tensor], RemapReport]:
    """Bring the weights of a released MaskDINO into our layout.

    Args:
        state: With the names of detectron2: `backbone.*` of a ResNet or Swin Transformer,
            `sem_seg_head.pixel_decoder.*` and `sem_seg_head.predictor.*`.

    Returns:
        The state dict of an mmdet detector for a model of two stages, of an mmseg segmentor for one
        of one stage; and what was done with each name, with the arguments that the weights need
        in `report.arguments`.

    Raises:
        ValueError: Two names that should hold the same differ, the order of levels cannot be told,
            or a tensor has not the shape that its name says.
    """
    report = RemapReport('maskdino')
    two_stage = f'{_PREDICTOR}.enc_output.weight' in state
    head = 'panoptic_head' if two_stage else 'decode_head'
    coarse_first, levels, extra = _levels(state)
    report.arguments = dict(double_norm=True, mask_padding=False)
    if two_stage:
        sizes = [0.05 * 2**i for i in range(levels)]
        report.arguments['proposal_sizes'] = tuple(sizes if coarse_first else reversed(sizes))
    rules = [
        (compile_template(rule.authors[0]), rule) for rule in _rules(coarse_first, levels, extra)
    ]
    out = {}
    for name, tensor in state.items():
        if reason := find_reason(name, _DROPPED):
            report.dropped[name] = reason
        elif original := _original(name):
            if original not in state or not torch.equal(state[original], tensor):
                raise ValueError(f'`{name}` should hold what `{original}` holds, but does not')
            report.dropped[name] = f'the same as {original}'
        elif name.startswith('backbone.'):
            continue
        else:
            found = ((pattern.fullmatch(name), rule) for pattern, rule in rules)
            match, rule = next((pair for pair in found if pair[0]), (None, None))
            if match is None:
                report.unexplained.append(name)
                continue
            target = f'{head}.{fill_template(rule.ours, match.groupdict())}'
            try:
                out[target] = rule.change.join((tensor,))
            except RuntimeError as error:
                raise ValueError(f'`{target}` cannot be made of the checkpoint: {error}') from error
            report.renamed[name] = target
    return out | convert_backbone(state, report), report


def _original(name: str) -> str | None:
    bare = name.removeprefix(f'{_PREDICTOR}.')
    for alias, original in _ALIASES:
        if bare != name and (match := re.match(alias, bare)):
            return f'{_PREDICTOR}.{original}{bare[match.end() :]}'
    return None


def _levels(state: State) -> tuple[bool, int, int]:
    """Whether the coarsest level comes first in the encoder, levels, and extra ones of them."""
    pattern = re.compile(rf'{re.escape(_PIXEL_DECODER)}\.input_proj\.(\d+)\.0\.weight')
    shapes = {int(m[1]): state[m[0]].shape for m in map(pattern.fullmatch, state) if m}
    if not shapes:
        raise ValueError(f'the checkpoint lacks `{_PIXEL_DECODER}.input_proj.*`')
    widths = [shapes[i][1] for i in sorted(shapes) if shapes[i][-1] == 1]
    if len(widths) > 1 and len(set(widths)) == 1:
        raise ValueError(
            f'all maps that `input_proj` takes have {widths[0]} channels, which does not tell '
            'whether the finest or the coarsest comes first'
        )
    return widths[0] > widths[-1], len(shapes), len(shapes) - len(widths)
