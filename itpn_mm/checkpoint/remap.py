"""From the parameter names of the authors' released iTPN files to ours, as rules that are data.

The authors keep backbone, pyramid and heads of iTPN in one module. Its list ``blocks`` holds the
blocks of all three stages and the two merges between them; which of its entries are merges is read
off the names, so that every depth works.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Rename:
    """A name that matches ``pattern`` as a whole becomes ``target``, a template of its groups."""

    pattern: str
    target: str


@dataclass(frozen=True)
class Drop:
    """A name that matches ``pattern`` as a whole is left out on purpose, for ``reason``."""

    pattern: str
    reason: str


Rule = Rename | Drop


@dataclass
class RemapReport:
    """What :func:`remap` did with every name.

    Args:
        layout: ``'authors'`` (a file of the authors), ``'itpn_mm'`` (ours) or ``'unknown'``.
        renamed: New name of each name that was kept, also where it stays the same.
        dropped: Names left out on purpose, with the reason.
        unexplained: Names in a file of the authors that no rule knows; they are left out.
    """

    layout: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def raise_if_unexplained(self, source: object) -> None:
        """Refuse a file with unexplained names: what they hold would be lost.

        Args:
            source: The file, for the message.

        Raises:
            ValueError: There are such names.
        """
        if self.unexplained:
            raise ValueError(
                f'{source}: looks like an iTPN file of the authors, but '
                f'{len(self.unexplained)} of its names are unknown: {shorten(self.unexplained)}; '
                'is it another architecture, such as Fast-iTPN?'
            )


def shorten(names: Sequence[str], limit: int = 4) -> str:
    """Join the first ``limit`` names and count the rest."""
    text = ', '.join(names[:limit])
    return text if len(names) <= limit else f'{text}, ... ({len(names)} in all)'


# Where the weights of the blocks of all kinds are; norm1, attention and gamma_1 exist in stage 3
# and the decoder only.
_LINEAR = r'(?P<layer>norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?P<kind>weight|bias)'
_AFFINE = r'\.(?P<kind>weight|bias)'


def _blocks(source: str, target: str) -> tuple[Rule, ...]:
    """Rules for the parameters of a block."""
    return (
        Rename(rf'{source}\.{_LINEAR}', rf'{target}.\g<layer>.\g<kind>'),
        Rename(rf'{source}\.gamma_(?P<branch>[12])', rf'{target}.ls\g<branch>.gamma'),
        Rename(rf'{source}\.attn\.relative_position_bias_table', rf'{target}.attn.rel_pos.table'),
        Rename(
            rf'{source}\.attn\.rel_pos_(?P<axis>[hw])', rf'{target}.attn.rel_pos.table_\g<axis>'
        ),
    )


def _affine(source: str, target: str) -> Rule:
    """Rule for the weight and bias of one layer."""
    return Rename(rf'{source}{_AFFINE}', rf'{target}.\g<kind>')


# `blocks.<index>` has become `stages.<stage>.<index>` or `merges.<index>` before these rules are
# applied.
BACKBONE_RULES: tuple[Rule, ...] = (
    Rename('absolute_pos_embed', 'backbone.pos_embed'),
    Drop('relative_position_index', 'an index that the model computes'),
    _affine(r'patch_embed\.(?P<part>proj|norm)', r'backbone.patch_embed.\g<part>'),
    *_blocks(r'stages\.(?P<at>\d+\.\d+)', r'backbone.stages.\g<at>'),
    _affine(r'merges\.(?P<at>\d+)\.norm', r'backbone.merges.\g<at>.norm'),
    Rename(r'merges\.(?P<at>\d+)\.reduction\.weight', r'backbone.merges.\g<at>.reduction.weight'),
)

NECK_RULES: tuple[Rule, ...] = (
    *(
        _affine(source, f'neck.laterals.{level}')
        for source, level in (
            ('align_dim_16tofpn', 'p16'),
            ('align_dim_16to8', 'p8'),
            ('align_dim_8to4', 'p4'),
        )
    ),
    *(
        rule
        for step, level in (('16to8', 'p8'), ('8to4', 'p4'))
        for rule in (
            _affine(rf'split_{step}\.norm', f'neck.splits.{level}.norm'),
            _affine(rf'split_{step}\.reduction', f'neck.splits.{level}.expand'),
            *_blocks(rf'block_{step}\.(?P<at>\d+)', rf'neck.blocks.{level}.\g<at>'),
        )
    ),
    *(
        rule
        for i, level in enumerate(('p16', 'p8', 'p4'))
        for rule in _blocks(rf'fpn_modules\.{i}', f'neck.outputs.{level}')
    ),
)

_EMBED_RULES: tuple[Rule, ...] = tuple(
    _affine(rf'decoder_embed\.{i}\.{j}', f'decoder.embeds.{level}.{part}')
    for i, level in enumerate(('p16', 'p8', 'p4'))
    for j, part in enumerate(('norm', 'proj'))
)

PIXEL_RULES: tuple[Rule, ...] = (
    *_EMBED_RULES,
    Rename('mask_token', 'decoder.mask_token'),
    Rename('decoder_pos_embed', 'decoder.pos_embed'),
    *_blocks(r'decoder_blocks\.(?P<at>\d+)', r'decoder.blocks.\g<at>'),
    _affine('decoder_norm', 'decoder.norm'),
    _affine('decoder_pred', 'head.pred'),
)

# The same names mean other things here: the mask token replaces tokens of the backbone, `norm` is
# the decoder's.
CLIP_RULES: tuple[Rule, ...] = (
    *_EMBED_RULES,
    Rename('mask_token', 'mask_token'),
    _affine('norm', 'decoder.norm'),
    _affine('lm_head', 'head.pred'),
    *_blocks(r'cls_pt_layers\.(?P<at>\d+)', r'aux_head.blocks.\g<at>'),
    _affine('norm_cls', 'aux_head.norm'),
    _affine('lm_cls_head', 'aux_head.pred'),
)

DOWNSTREAM_RULES: tuple[Rule, ...] = (
    _affine('fc_norm', 'neck.norm'),
    _affine('head', 'head.fc'),
    # heads of the authors' mmdet and mmseg models stand beside the backbone and keep their names
    Rename(r'(?P<name>(rpn_head|roi_head|decode_head|auxiliary_head)\..+)', r'\g<name>'),
)

# A merge gives the authors' files away, with the wrappers around them: DDP, a MIM encoder, an mmdet
# or mmseg model.
_AUTHORS_KEY = re.compile(
    r'(?P<wrapper>((module|encoder|backbone)\.)*)blocks\.\d+\.reduction\.weight'
)
_OUR_KEY = re.compile(r'(.+\.)?(merges\.0\.reduction\.weight|splits\.p\d+\.expand\.weight)')


def remap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], RemapReport]:
    """Bring a state dict into our layout; only names change, tensors are taken as they are.

    Args:
        state: State dict in the authors' layout (with or without the prefixes that DDP, mmdet and
            mmseg add), in ours, or any other. The latter two only lose a leading ``module.`` that
            all names share.

    Returns:
        The new state dict and what was done with each name.

    Raises:
        ValueError: A file of the authors has not exactly two merges, or two names become one.
    """
    match = next(filter(None, map(_AUTHORS_KEY.fullmatch, state)), None)
    if match is None:
        ours = any(map(_OUR_KEY.fullmatch, state))
        report = RemapReport('itpn_mm' if ours else 'unknown')
        wrapper = 'module.' if state and all(name.startswith('module.') for name in state) else ''
        report.renamed = {name: name.removeprefix(wrapper) for name in state}
        return {report.renamed[name]: tensor for name, tensor in state.items()}, report
    return _remap_authors(state, match['wrapper'])


def _remap_authors(
    state: Mapping[str, Tensor], wrapper: str
) -> tuple[dict[str, Tensor], RemapReport]:
    bare = {name: name.removeprefix(wrapper).removeprefix('module.') for name in state}
    places = _block_places(bare.values())
    rules = BACKBONE_RULES + NECK_RULES + DOWNSTREAM_RULES
    rules += CLIP_RULES if 'lm_head.weight' in bare.values() else PIXEL_RULES
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]

    out: dict[str, Tensor] = {}
    report = RemapReport('authors')
    for name, tensor in state.items():
        placed = re.sub(r'^blocks\.(\d+)', lambda m: places[int(m[1])], bare[name])
        match, rule = next(
            ((m, rule) for regex, rule in compiled if (m := regex.fullmatch(placed))), (None, None)
        )
        if match is None:
            report.unexplained.append(name)
        elif isinstance(rule, Drop):
            report.dropped[name] = rule.reason
        else:
            target = match.expand(rule.target)
            if target in out:
                raise ValueError(
                    f'two names of the checkpoint become `{target}`; one of them is `{name}`'
                )
            out[target] = tensor
            report.renamed[name] = target
    return out, report


def _block_places(names: Iterable[str]) -> dict[int, str]:
    """``stages.<stage>.<index>`` or ``merges.<index>`` for each index of the list ``blocks``."""
    found = [
        m for m in (re.match(r'blocks\.(\d+)\.(reduction\.weight)?', name) for name in names) if m
    ]
    merges = sorted(int(m[1]) for m in found if m[2])
    if len(merges) != 2:
        raise ValueError(
            f'`blocks` of an iTPN checkpoint must hold 2 merges, but there are '
            f'{len(merges)}: {merges}'
        )
    places = {}
    for index in {int(m[1]) for m in found}:
        stage = sum(merge < index for merge in merges)  # merges before this entry
        start = merges[stage - 1] + 1 if stage else 0
        places[index] = f'merges.{stage}' if index in merges else f'stages.{stage}.{index - start}'
    return places
