"""Functions for config files that put a backbone and its pyramid into a model of another config.

    _base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

    from itpn_mm.recipes import layer_wise_adamw, swap_in

    model = swap_in(_base_.model, 'fastitpn-base', checkpoint='FILE')
    optim_wrapper = layer_wise_adamw('fastitpn-base')

The import has to come after `_base_`: a file that begins with one is of another kind for mmengine.
The functions only return dicts: a config that was read is as any other, and can be dumped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .acceleration import SETTINGS
from .backbones import FastiTPN, HiViT
from .backbones.arguments import parse_arch

__all__ = ['layer_wise_adamw', 'swap_in']

BACKBONES = dict(hivit=HiViT, fastitpn=FastiTPN)
# Rates of layer decay by size. Those of base and large are the authors' in detection.
DECAY_RATES = dict(tiny=0.80, small=0.85, base=0.90, large=0.95)
TRUNKS = tuple(f'{family}-{size}' for family in BACKBONES for size in DECAY_RATES)
# Pyramids that were pre-trained; those of HiViT with CLIP have `depth=1`.
PYRAMIDS = dict(hivit=dict(depth=2), fastitpn=dict(depth=1, bias=True))
WIDTH = 256  # of their levels
RGB_OF_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# Heads that read the maps, and say by strides which ones.
HEADS = ('rpn_head', 'bbox_head', 'bbox_head_init', 'panoptic_head', 'decode_head')
FINEST, COARSEST = 4, 64  # levels of segmentors, and of DETR's kind of detector


def swap_in(
    model: Mapping[str, Any],
    trunk: str = 'fastitpn-base',
    checkpoint: str | None = None,
    *,
    strides: Sequence[int] | None = None,
    accelerate: str | None = None,
    neck: Mapping[str, Any] | None = None,
    **backbone: Any,
) -> dict:
    """Replace backbone and neck of a detector or segmentor.

    For `model = swap_in(_base_.model, ...)`.

    The pyramid gives maps of 256 channels at the strides which the heads are made for, and images
    are normalised as in the pre-training: RGB, ImageNet's mean and deviation.

    Args:
        model: The `model` of the base config.
        trunk: 'hivit' or 'fastitpn', '-', and 'tiny', 'small', 'base' or 'large'.
        checkpoint: A pre-trained file that both parts start from.
        strides: Strides of the maps, where the heads do not tell.
        accelerate: A name in :data:`itpn_mm.acceleration.SETTINGS`.
        neck: More arguments of the pyramid, such as `dict(depth=1)`.
        **backbone: More arguments of the backbone, such as `drop_path_rate=0.1`, or an `arch` of
            your own.

    Returns:
        What differs from `model`.

    Raises:
        ValueError: `trunk`, `accelerate` or `arch` is unknown, or the strides cannot be told.
    """
    family, size = _parse(trunk)
    if accelerate is not None and accelerate not in SETTINGS:
        raise ValueError(f'`accelerate` must be one of {tuple(SETTINGS)}, but got {accelerate!r}')
    strides = asked_strides(model) if strides is None else tuple(strides)
    kind = BACKBONES[family]
    width = parse_arch(backbone.get('arch', size), kind.arch_zoo)['embed_dims']
    parts = dict(
        backbone=dict(type=f'itpn_mm.{kind.__name__}', arch=size, img_size=224) | backbone,
        neck=dict(
            type='itpn_mm.TransformerPyramidNeck',
            in_channels=(width // 4, width // 2, width),
            out_channels=WIDTH,
            out_strides=strides,
        )
        | PYRAMIDS[family]
        | dict(neck or {}),
    )
    for name, part in parts.items():
        if checkpoint is not None:
            part['init_cfg'] = dict(type='Pretrained', checkpoint=checkpoint, prefix=f'{name}.')
    if accelerate is not None:
        parts['backbone'] = dict(
            type='itpn_mm.TokenMigration', backbone=parts['backbone'], **SETTINGS[accelerate]
        )
    for name, part in parts.items():
        if name in model:  # elsewhere mmengine would hand the mark on, as an argument
            part['_delete_'] = True
    if 'data_preprocessor' in model:
        parts['data_preprocessor'] = RGB_OF_IMAGENET | _padding(model, strides[-1])
    if 'pretrained' in model:  # mmseg would hand it to the backbone
        parts['pretrained'] = None
    width = parts['neck']['out_channels']
    for name in (*HEADS, 'auxiliary_head'):
        changes = [_take_width(head, width, len(strides)) for head in _as_list(model.get(name))]
        if not any(changes):
            continue
        if isinstance(model[name], Mapping):
            [parts[name]] = changes
        else:  # mmengine replaces lists as a whole
            parts[name] = [{**head, **new} for head, new in zip(model[name], changes, strict=True)]
    return parts


def layer_wise_adamw(trunk: str = 'fastitpn-base', lr: float = 1e-4, **wrapper: Any) -> dict:
    """AdamW with layer-wise learning rates, for `optim_wrapper = layer_wise_adamw(...)`.

    Args:
        trunk: As in :func:`swap_in`; the rates of a large model fall off more slowly.
        lr: Learning rate of pyramid and heads.
        **wrapper: More of the optimizer wrapper, such as `clip_grad=dict(max_norm=0.1)` or
            `type='AmpOptimWrapper'`.

    Raises:
        ValueError: `trunk` is unknown.
    """
    _, size = _parse(trunk)
    return {
        '_delete_': True,
        'type': 'OptimWrapper',
        'optimizer': dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
        'constructor': 'itpn_mm.LayerDecayOptimWrapperConstructor',
        'paramwise_cfg': dict(layer_decay_rate=DECAY_RATES[size], unit='attention'),
        **wrapper,
    }


def asked_strides(model: Mapping[str, Any]) -> tuple[int, ...]:
    """Strides of the maps that the heads of a detector are made for.

    Raises:
        ValueError: The config does not tell.
    """
    for name in HEADS:
        for head in _as_list(model.get(name)):
            for teller in (head.get('anchor_generator') or head.get('prior_generator') or {}, head):
                if teller.get('strides'):
                    strides = teller['strides']
                    return tuple(s[0] if isinstance(s, (list, tuple)) else s for s in strides)
            if _is_maskdino(head) or _reads_pyramid(head, model.get('backbone') or {}):
                return tuple(FINEST << level for level in range(len(head['in_channels'])))
    # A deformable encoder takes whatever levels its neck gives: the coarsest ones that there are.
    levels = (model.get('neck') or {}).get('num_outs')
    if 'encoder' in model and levels in (4, 5):
        return tuple(COARSEST >> k for k in reversed(range(levels)))
    raise ValueError(
        f'`strides` must be given: the config of {model.get("type")} does not tell which maps its '
        'heads read, such as strides=(8, 16, 32)'
    )


def _is_maskdino(head: Mapping[str, Any]) -> bool:
    return 'MaskDINO' in str(head.get('type')) and 'in_channels' in head


def _reads_pyramid(head: Mapping[str, Any], backbone: Mapping[str, Any]) -> bool:
    """Whether a head of mmseg reads four maps, each of half the size of the one before."""
    dilated = set(backbone.get('dilations', ())) - {1}
    return list(_as_list(head.get('in_index'))) == [0, 1, 2, 3] and not dilated


def _padding(model: Mapping[str, Any], coarsest: int) -> dict:
    """Sizes for which all maps cover as much, where heads rely on it."""
    if 'decode_head' in model:
        return dict(test_cfg=dict(size_divisor=coarsest))  # in training, crops have a size
    joined = 'encoder' in model or _is_maskdino(model.get('panoptic_head') or {})
    return dict(pad_size_divisor=coarsest) if joined else {}


def _take_width(head: Mapping[str, Any], width: int, num_maps: int) -> dict:
    """What a head has to change for maps of `width` channels."""
    channels = head.get('in_channels')
    if channels is None:
        return {}
    if isinstance(channels, (list, tuple)):
        width = [width] * (len(_as_list(head.get('in_index'))) or num_maps)
    return {} if channels == width else dict(in_channels=width)


def _as_list(value: Any) -> Sequence[Any]:
    if value is None:
        return []
    return value if isinstance(value, (list, tuple)) else [value]


def _parse(trunk: str) -> tuple[str, str]:
    """Family and size."""
    if trunk not in TRUNKS:
        raise ValueError(f'`trunk` must be one of {TRUNKS}, but got {trunk!r}')
    family, size = trunk.split('-')
    return family, size
