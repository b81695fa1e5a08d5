"""Checks that the parts of a built model fit together: backbone, neck and heads, by declaration.

Nothing is run. A part tells what it gives and takes by attributes (`out_channels`, `strides`,
`in_channels`, ...); what a part does not tell is not checked. The parts are known by their names in
the models of mmpretrain, mmdet, mmseg and mmrotate, so that none of these is imported.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Necks of classifiers that give one vector as wide as the last map.
POOLING_NECKS = ('GlobalAveragePooling', 'GlobalAveragePoolNorm')


@dataclass(frozen=True)
class FeatureMaps:
    """What is known of the maps that a backbone or neck gives, finest first."""

    source: str  # how to name it in an error
    channels: tuple[int, ...]
    strides: tuple[int, ...] | None = None


def check_model_fits(model: nn.Module) -> None:
    """Raise ValueError naming both sides where two parts of `model` do not fit together."""
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    maps = backbone_maps(backbone)
    if maps is not None and type(neck).__name__ in POOLING_NECKS:
        _check_classifier(maps, 'neck', neck)
        _check_classifier(maps, 'head', getattr(model, 'head', None))
    if neck is not None:
        necks = _as_list(neck)
        if maps is not None:
            _check_neck(maps, necks[0])
        maps = neck_maps(necks[-1])
    if maps is None:
        return
    for name in ('rpn_head', 'bbox_head', 'bbox_head_init'):
        _check_dense_head(maps, name, getattr(model, name, None))
    _check_encoder(maps, model)
    for name in ('panoptic_head', 'decode_head'):
        _check_pixel_decoder(maps, name, getattr(model, name, None))
    _check_roi_head(maps, getattr(model, 'roi_head', None))
    for name in ('decode_head', 'auxiliary_head'):
        for label, head in _members(name, getattr(model, name, None)):
            _check_decode_head(maps, label, head)


def backbone_maps(backbone: nn.Module | None) -> FeatureMaps | None:
    """Return what `backbone` says: a sequence `out_channels` and, maybe, one of `strides`."""
    channels = _ints(getattr(backbone, 'out_channels', None))
    if channels is None:
        return None
    strides = _ints(getattr(backbone, 'strides', None))
    source = f'backbone {type(backbone).__name__}'
    return FeatureMaps(source, channels, strides if _same_length(strides, channels) else None)


def neck_maps(neck: nn.Module) -> FeatureMaps | None:
    """Return what `neck` says: `out_channels` for each of its `out_strides` or `num_outs` maps."""
    strides = _ints(getattr(neck, 'out_strides', None))
    count = len(strides) if strides else getattr(neck, 'num_outs', None)
    # `level_channels` is there where the maps of a neck differ in width.
    channels = getattr(neck, 'level_channels', getattr(neck, 'out_channels', None))
    if isinstance(channels, int) and isinstance(count, int):
        channels = (channels,) * count
    channels = _ints(channels)
    if channels is None or count != len(channels):
        return None
    return FeatureMaps(f'neck {type(neck).__name__}', channels, strides)


def _check_neck(maps: FeatureMaps, neck: nn.Module) -> None:
    # A neck without these may take the maps in another order (YOLOV3Neck) or only some of them.
    if not hasattr(neck, 'num_outs') and not hasattr(neck, 'in_strides'):
        return
    in_channels = _ints(getattr(neck, 'in_channels', None))
    if in_channels is not None:
        _require_equal('neck.in_channels', in_channels, maps.channels, maps, 'channels')
    in_strides = _ints(getattr(neck, 'in_strides', None))
    if in_strides is not None and maps.strides is not None:
        _require_equal('neck.in_strides', in_strides, maps.strides, maps, 'strides')


def _check_classifier(maps: FeatureMaps, name: str, part: nn.Module | None) -> None:
    in_channels = getattr(part, 'in_channels', None)
    if isinstance(in_channels, int):
        label = f'{name}.in_channels'
        _require_equal(label, in_channels, maps.channels[-1], maps, 'channels, last')


def _check_dense_head(maps: FeatureMaps, name: str, head: nn.Module | None) -> None:
    in_channels = getattr(head, 'in_channels', None)
    if isinstance(in_channels, int):
        in_channels = (in_channels,) * len(maps.channels)
    in_channels = _ints(in_channels)
    if in_channels is not None:
        _require_equal(f'{name}.in_channels', in_channels, maps.channels, maps, 'channels')
    generator = getattr(head, 'prior_generator', None)
    strides = _prior_strides(generator)
    if strides is None:
        return
    kind = 'anchor' if 'Anchor' in type(generator).__name__ else 'prior'
    label = f'{name}.{kind}_generator.strides'
    if maps.strides is not None:
        _require_equal(label, strides, maps.strides, maps, 'strides')
    elif len(strides) != len(maps.channels):
        raise ValueError(
            f'`{label}` is {strides}, {len(strides)} levels, but {maps.source} gives '
            f'{len(maps.channels)} maps; make them equal'
        )


def _check_encoder(maps: FeatureMaps, model: nn.Module) -> None:
    """Check a deformable encoder (DINO, Deformable DETR), which joins the maps as they come."""
    levels = getattr(model, 'num_feature_levels', None)
    width = getattr(getattr(model, 'encoder', None), 'embed_dims', None)
    if not isinstance(levels, int) or not isinstance(width, int):
        return
    if levels != len(maps.channels):
        raise ValueError(
            f'`num_feature_levels` is {levels}, but {maps.source} gives {len(maps.channels)} '
            'maps; make them equal'
        )
    label = 'encoder.layer_cfg.self_attn_cfg.embed_dims'
    _require_equal(label, (width,) * levels, maps.channels, maps, 'channels')


def _check_pixel_decoder(maps: FeatureMaps, name: str, head: nn.Module | None) -> None:
    """Check the pixel decoder of Mask2Former or MaskDINO."""
    decoder = getattr(head, 'pixel_decoder', None)
    channels = _ints(getattr(decoder, 'in_channels', None)) or _mask2former_channels(decoder)
    if channels is not None:
        _require_equal(f'{name}.in_channels', channels, maps.channels, maps, 'channels')
    strides = _ints(getattr(decoder, 'strides', None))
    if strides is not None and maps.strides is not None:
        _require_equal(f'{name}.strides', strides, maps.strides, maps, 'strides')


def _mask2former_channels(decoder: nn.Module | None) -> tuple[int, ...] | None:
    """Return what the convolutions of Mask2Former take; it keeps them coarsest first."""
    inputs, laterals = (getattr(decoder, f'{kind}_convs', None) for kind in ('input', 'lateral'))
    if inputs is None or laterals is None:
        return None
    convs = [getattr(block, 'conv', None) for block in (*inputs, *laterals)]
    return _ints([getattr(conv, 'in_channels', None) for conv in reversed(convs)])


def _check_roi_head(maps: FeatureMaps, roi_head: nn.Module | None) -> None:
    for kind in ('bbox', 'mask'):
        name = f'{kind}_roi_extractor'
        extractors = list(_members(f'roi_head.{name}', getattr(roi_head, name, None)))
        heads = list(_members(f'roi_head.{kind}_head', getattr(roi_head, f'{kind}_head', None)))
        for label, extractor in extractors:
            _check_roi_extractor(maps, label, extractor)
        if hasattr(roi_head, 'shared_head') or len(extractors) != len(heads):
            continue
        for (label, extractor), (head_label, head) in zip(extractors, heads):
            given, taken = (
                getattr(extractor, 'out_channels', None),
                getattr(head, 'in_channels', None),
            )
            if isinstance(given, int) and isinstance(taken, int) and given != taken:
                raise ValueError(
                    f'`{head_label}.in_channels` is {taken}, but `{label}.out_channels` is '
                    f'{given}; make them equal'
                )


def _check_roi_extractor(maps: FeatureMaps, label: str, extractor: nn.Module) -> None:
    strides = _ints(getattr(extractor, 'featmap_strides', None))
    if strides is None:
        return
    count = len(strides)
    if count > len(maps.channels):
        raise ValueError(
            f'`{label}.featmap_strides` {strides} names {count} maps, but {maps.source} gives '
            f'{len(maps.channels)}; remove strides or add maps'
        )
    if maps.strides is not None:
        _require_equal(
            f'{label}.featmap_strides',
            strides,
            maps.strides[:count],
            maps,
            f'strides, first {count}',
        )
    # Where the levels are concatenated, their sum is no contract of the extractor.
    if getattr(extractor, 'aggregation', None) != 'concat':
        out_channels = getattr(extractor, 'out_channels', None)
        if isinstance(out_channels, int):
            _require_equal(
                f'{label}.out_channels',
                (out_channels,) * count,
                maps.channels[:count],
                maps,
                f'channels, first {count}',
            )


def _check_decode_head(maps: FeatureMaps, label: str, head: nn.Module) -> None:
    in_index, in_channels = getattr(head, 'in_index', None), getattr(head, 'in_channels', None)
    single = isinstance(in_index, int)
    indices = (in_index,) if single else _ints(in_index)
    if indices is None or in_channels is None:
        return
    count = len(maps.channels)
    if not all(-count <= index < count for index in indices):
        raise ValueError(
            f'`{label}.in_index` is {in_index}, but {maps.source} gives only {count} maps; '
            f'use indices below {count}'
        )
    given: Any = tuple(maps.channels[index] for index in indices)
    if single:
        given = given[0]
    elif isinstance(in_channels, int):  # 'resize_concat'
        given = sum(given)
    taken = in_channels if isinstance(in_channels, int) else _ints(in_channels)
    if taken is not None:
        _require_equal(f'{label}.in_channels', taken, given, maps, f'channels at {in_index}')


def _require_equal(argument: str, taken: Any, given: Any, maps: FeatureMaps, what: str) -> None:
    if taken != given:
        raise ValueError(
            f'`{argument}` is {taken}, but {maps.source} gives maps of {given} ({what}); '
            'make them equal'
        )


def _members(label: str, module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """Yield `module`, or the members of a ModuleList, with labels."""
    if isinstance(module, nn.ModuleList):
        yield from ((f'{label}.{i}', member) for i, member in enumerate(module))
    elif module is not None:
        yield label, module


def _as_list(neck: nn.Module) -> list[nn.Module]:
    return list(neck) if isinstance(neck, (nn.Sequential, nn.ModuleList)) else [neck]


def _ints(value: Any) -> tuple[int, ...] | None:
    """Return a sequence of ints as a tuple, anything else as None."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return tuple(value)
    return None


def _same_length(a: Sequence | None, b: Sequence) -> bool:
    return a is not None and len(a) == len(b)


def _prior_strides(generator: Any) -> tuple[int, ...] | None:
    """Return the strides of an anchor or point generator; it keeps them as (width, height)."""
    strides = getattr(generator, 'strides', None)
    if not isinstance(strides, (list, tuple)):
        return None
    return _ints([s[0] if isinstance(s, (list, tuple)) else s for s in strides])
