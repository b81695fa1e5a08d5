"""The config of the model that a checkpoint holds, read off its tensors and ready to paste."""

from typing import Any

from .architecture import (
    LAYER_SCALE,
    State,
    count_entries,
    flatten,
    inspect,
    inspect_backbone,
    inspect_neck,
    square_grid,
    square_window,
    strides_of,
    take_prefix,
)
from .maskdino import head_part
from .maskdino_config import host_backbone, maskdino_model

Config = dict[str, Any]

# The tensors do not tell these; they are those of every released model.
HEAD_DIM, DECODER_HEAD_DIM = 64, 32
# Fast-iTPN has these arguments, HiViT has not.
_FAST_ONLY = ('sub_norm', 'swiglu', 'cls_token')
_BACKBONE_ARGUMENTS = (
    'in_channels',
    'patch_size',
    'patch_norm',
    'stem_mlp_ratio',
    'mlp_ratio',
    'qkv_bias',
    'use_abs_pos_emb',
    *_FAST_ONLY,
    'rel_pos_bias',
)
# The heads of mmdet and mmseg models.
_DOWNSTREAM_HEADS = {
    'detection': ('rpn_head.', 'roi_head.', 'bbox_head.', 'panoptic_head.'),
    'segmentation': ('decode_head.', 'auxiliary_head.'),
}


def task_of(state: State, released: bool = False) -> str:
    """What the model of a state dict in our layout is for.

    Args:
        state: The state dict.
        released: Whether it comes from the authors. Their detectors and segmentors are told apart
            by the depth of the pyramid, 1 and 2, where no head tells.

    Returns:
        ``'pixel'`` or ``'clip'`` (pre-training), ``'classification'``, ``'detection'``,
        ``'segmentation'``, or ``'parts'`` for a backbone or pyramid with nothing that tells.
    """
    if 'decoder.mask_token' in state:
        return 'pixel'
    if 'mask_token' in state and 'decoder.norm.weight' in state:
        return 'clip'
    if 'head.fc.weight' in state:
        return 'classification'
    for task, heads in _DOWNSTREAM_HEADS.items():
        if any(name.startswith(heads) for name in state):
            return task
    depths = inspect_neck(take_prefix(state, 'neck.')).get('depth')
    if released and depths:
        return 'detection' if max(depths.values()) == 1 else 'segmentation'
    return 'parts'


def model_config(
    state: State,
    checkpoint: object,
    released: bool = False,
    acceleration: Config | None = None,
    arguments: Config | None = None,
) -> Config:
    """Config of the model that a state dict in our layout holds.

    Args:
        state: The state dict.
        checkpoint: Path of the file.
        released: Whether it comes from the authors; see :func:`task_of`.
        acceleration: Arguments of the TokenMigration around the backbone; ``None`` for what the
            tensors tell of one.
        arguments: Of a MaskDINO's head, which its weights need and do not tell.

    Returns:
        ``model`` and ``load_from`` of a pre-training model, classifier or MaskDINO; ``backbone``
        and ``neck``, as far as they are there and those of ours with ``init_cfg``, of anything
        else.
    """
    task = task_of(state, released)
    found = inspect(state)
    if acceleration is None and found['backbone'] is not None:
        acceleration = found['backbone']['acceleration']
    if task in _MODELS:
        model = _MODELS[task](state)
        return dict(model=_accelerated(model, acceleration), load_from=str(checkpoint))
    if head := head_part(state):
        parts = {}
        if found['backbone'] is not None:
            parts['backbone'] = _backbone(found['backbone'])
        if found['neck'] is not None:
            parts['neck'] = _neck(found['neck'], found['backbone'])
        parts = _accelerated(parts, acceleration)
        model = maskdino_model(state, head, parts, arguments or {})
        return dict(model=model, load_from=str(checkpoint))
    parts = {}
    # the authors' mmdet and mmseg models have the LayerNorms of torch
    common = dict(norm_eps=1e-5) if released and task in _DOWNSTREAM_HEADS else {}
    init_cfg = dict(init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    if found['backbone'] is not None:
        parts['backbone'] = _backbone(found['backbone']) | common | init_cfg
    elif backbone := host_backbone(state):
        parts['backbone'] = backbone
    if found['neck'] is not None:
        parts['neck'] = _neck(found['neck'], found['backbone'])
        if task == 'segmentation' and released:
            parts['neck'] |= dict(out_strides=(4, 8, 16, 32), pool='max', concat_inputs=True)
        parts['neck'] |= common | init_cfg
    return _accelerated(parts, acceleration)


def _accelerated(parts: Config, acceleration: Config | None) -> Config:
    """The parts with a wrapped backbone."""
    if acceleration is None or 'backbone' not in parts:
        return parts
    wrapper = dict(type='itpn_mm.TokenMigration', backbone=parts['backbone'])
    return parts | dict(backbone=wrapper | acceleration)


def config_text(
    state: State,
    checkpoint: object,
    released: bool = False,
    acceleration: Config | None = None,
    arguments: Config | None = None,
) -> str:
    """:func:`model_config` as the text of a config.

    A whole model stands as ``model = dict(...)``; a backbone and a pyramid as the lines that go
    into such a ``dict``.
    """
    return format_config(model_config(state, checkpoint, released, acceleration, arguments))


def format_config(config: Config) -> str:
    """Text of a config, see :func:`config_text`."""
    if 'model' in config:
        return '\n'.join(f'{name} = {_format(value)}' for name, value in config.items())
    return '\n'.join(f'{name}={_format(value)},' for name, value in config.items())


def _format(value: Any, indent: str = '') -> str:
    if isinstance(value, list) and len(value) > 8 and len(set(value[:-1])) == 1:
        return f'[{value[0]!r}] * {len(value) - 1} + [{value[-1]!r}]'
    if not isinstance(value, dict) or not value:
        return 'dict()' if value == {} else repr(value)
    inner = f'{indent}    '
    if set(value) in ({'type', 'checkpoint'}, {'embed_dims', 'depths', 'num_heads'}):
        return f'dict({", ".join(f"{k}={v!r}" for k, v in value.items())})'
    lines = ''.join(f'{inner}{k}={_format(v, inner)},\n' for k, v in value.items())
    return f'dict(\n{lines}{indent})'


def _backbone(found: Config) -> Config:
    num_heads = found['num_heads'] or max(found['embed_dims'] // HEAD_DIM, 1)
    config = dict(
        type=f'itpn_mm.{found["type"]}',
        arch=dict(embed_dims=found['embed_dims'], depths=found['depths'], num_heads=num_heads),
    )
    if found['grid'] is not None:
        config['img_size'] = found['grid'][0] * found['patch_size']
    fast = found['type'] == 'FastiTPN'
    config |= {n: found[n] for n in _BACKBONE_ARGUMENTS if fast or n not in _FAST_ONLY}
    config['layer_scale_init_value'] = LAYER_SCALE if found['layer_scale'] else None
    return config


def _neck(found: Config, backbone: Config | None) -> Config:
    channels = found['in_channels']
    if backbone is not None:  # the file may lack finer levels, which no chosen output needs
        embed_dims, patch_size = backbone['embed_dims'], backbone['patch_size']
        channels = {patch_size // n: embed_dims // n for n in (4, 2, 1)}
    config = dict(
        type='itpn_mm.TransformerPyramidNeck',
        in_channels=tuple(channels.values()),
        in_strides=tuple(channels),
        out_channels=found['out_channels'],
        mlp_ratio=found['mlp_ratio'],
    )
    if depth := found['depth']:
        missing = next(iter(depth.values()))
        depths = [depth.get(stride, missing) for stride in list(channels)[:-1]]
        config |= dict(depth=flatten(depths), bias=found['bias'])
    if found['levels'] != tuple(channels) or found['levels'][0] != 4:
        config['out_strides'] = found['levels']
    return config


def _decoder_parts(state: State) -> tuple[Config, Config, tuple[int, ...], int, int]:
    """Backbone, neck, strides of the levels that the decoder reads, its width, that of levels."""
    backbone = inspect_backbone(take_prefix(state, 'backbone.'))
    neck = _neck(inspect_neck(take_prefix(state, 'neck.')), backbone)
    strides = tuple(strides_of(state, r'decoder\.embeds\.p(\d+)\.norm\.weight'))
    neck['out_strides'] = strides
    width = state['decoder.norm.weight'].shape[0]
    return backbone, neck, strides, width, neck['out_channels']


def _pixel_model(state: State) -> Config:
    backbone, neck, strides, width, levels = _decoder_parts(state)
    patch_size, head = backbone['patch_size'], state['head.pred.weight']
    fc2 = state['decoder.blocks.0.mlp.fc2.weight']
    model = dict(
        type='itpn_mm.iTPN',
        backbone=_backbone(backbone),
        neck=neck,
        masking=dict(type='itpn_mm.RandomMasking', ratio=0.75),
        decoder=dict(
            type='itpn_mm.MIMDecoder',
            in_channels=levels,
            strides=strides,
            embed_dims=width,
            depth=count_entries(state, r'decoder\.blocks'),
            num_heads=max(width // DECODER_HEAD_DIM, 1),
            mlp_ratio=fc2.shape[1] / fc2.shape[0],
            img_size=square_grid(state['decoder.pos_embed'].shape[1])[0] * patch_size,
            patch_size=patch_size,
        ),
        head=dict(
            type='itpn_mm.PixelReconstructionHead',
            embed_dims=width,
            patch_size=patch_size,
            in_channels=head.shape[0] // patch_size**2,
        ),
    )
    if any(name.startswith('mfm_head.') for name in state):
        model |= _feature_modelling(state, backbone['embed_dims'], strides)
    return model


def _feature_modelling(state: State, embed_dims: int, strides: tuple[int, ...]) -> Config:
    """Head and teacher of masked feature modelling."""
    channels = tuple(embed_dims * stride // strides[-1] for stride in strides)
    finest = state[f'mfm_head.projs.p{strides[0]}.weight']
    visible = finest.shape[0] == channels[0]  # a level predicts itself, else all its sub-tokens
    return dict(
        mfm_head=dict(
            type='itpn_mm.MFMHead',
            stage_channels=channels,
            strides=strides,
            positions='visible' if visible else 'masked',
            in_channels=finest.shape[1],
        ),
        teacher=dict(type='itpn_mm.EMATeacher'),
    )


def _clip_model(state: State) -> Config:
    backbone, neck, strides, width, levels = _decoder_parts(state)
    fast, target_dims = backbone['type'] == 'FastiTPN', state['head.pred.weight'].shape[0]
    loss = 'cosine' if fast else 'smooth_l1'
    model = dict(
        type='itpn_mm.iTPNDistill',
        backbone=_backbone(backbone),
        neck=neck,
        decoder=dict(
            type='itpn_mm.LevelSum', in_channels=levels, strides=strides, embed_dims=width
        ),
        head=dict(
            type='itpn_mm.CLIPDistillHead', in_channels=width, target_dims=target_dims, loss=loss
        ),
    )
    aux = take_prefix(state, 'aux_head.')
    if aux:
        table, fc2 = aux.get('blocks.0.attn.rel_pos.table'), aux['blocks.0.mlp.fc2.weight']
        dim = fc2.shape[0]
        side = None if table is None else square_window(table.shape[0])
        model['aux_head'] = dict(
            type='itpn_mm.AuxiliaryHead',
            in_channels=dim,
            num_heads=max(dim // HEAD_DIM, 1) if table is None else table.shape[1],
            mlp_ratio=fc2.shape[1] / dim,
            num_blocks=count_entries(aux, 'blocks'),
            grid=None if side is None else (side, side),
            layer_scale_init_value=LAYER_SCALE if 'blocks.0.ls1.gamma' in aux else None,
            target_dims=target_dims,
            loss=loss,
        )
    return model


def _classifier(state: State) -> Config:
    backbone = _backbone(inspect_backbone(take_prefix(state, 'backbone.')))
    num_classes, in_channels = state['head.fc.weight'].shape
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone | dict(out_indices=(2,)),
        neck=dict(
            type='itpn_mm.GlobalAveragePoolNorm',
            in_channels=in_channels,
            gap_before_norm='neck.pre_norm.weight' not in state,
        ),
        head=dict(
            type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=in_channels
        ),
    )


_MODELS = dict(pixel=_pixel_model, clip=_clip_model, classification=_classifier)
