"""The config of a MaskDINO, read off its tensors."""

from typing import Any

from .architecture import State, count_entries, take_prefix

Config = dict[str, Any]

PANOPTIC_CLASSES, THINGS = 133, 80  # of COCO; a file does not tell which classes are things
# How images are normalised: as those of ImageNet.
_COLOURS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
_RESNETS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def maskdino_model(state: State, part: str, parts: Config, arguments: Config) -> Config:
    """Config of the detector (mmdet) or segmentor (mmseg) that a state dict holds.

    Args:
        state: In our layout.
        part: `'panoptic_head'` or `'decode_head'`, which decides the package.
        parts: Configs of backbone and neck of ours.
        arguments: Of the head, which its weights need and do not tell.
    """
    if 'backbone' not in parts and (backbone := host_backbone(state)):
        parts = dict(backbone=backbone) | parts
    head = maskdino_head(take_prefix(state, f'{part}.'))
    num_classes = head.pop('num_classes')
    if part == 'decode_head':
        colours = dict(_COLOURS, size_divisor=32, seg_pad_val=255, test_cfg=dict(size_divisor=32))
        return dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', **colours),
            **parts,
            decode_head=dict(type='itpn_mm.MaskDINODecodeHead', num_classes=num_classes)
            | head
            | arguments,
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    things = THINGS if num_classes == PANOPTIC_CLASSES else num_classes
    classes = dict(num_things_classes=things, num_stuff_classes=num_classes - things)
    panoptic = things < num_classes
    colours = dict(_COLOURS, pad_size_divisor=32, pad_mask=True, mask_pad_value=0, pad_seg=panoptic)
    return dict(
        type='itpn_mm.MaskDINO',
        data_preprocessor=dict(type='DetDataPreprocessor', **colours, seg_pad_value=255),
        **parts,
        panoptic_head=dict(type='itpn_mm.MaskDINOHead') | classes | head | arguments,
        panoptic_fusion_head=dict(type='itpn_mm.MaskDINOFusionHead') | classes,
        test_cfg=dict(panoptic_on=panoptic, instance_on=True),
    )


def maskdino_head(state: State) -> Config:
    """Arguments of a MaskDINOBase from the state dict of its head."""
    levels, feat_channels = state['pixel_decoder.level_embed'].shape
    convs = [state[f'pixel_decoder.input_convs.{i}.conv.weight'] for i in range(levels)]
    encoded = [conv.shape[1] for conv in convs if conv.shape[-1] == 1]
    finest = state['pixel_decoder.lateral.conv.weight'].shape[1]
    # maps of one width are those of a pyramid, whose finest map is not encoded in our configs
    finest_is_encoded = encoded[0] == finest != encoded[-1]
    two_stage = 'predictor.memory_trans_fc.weight' in state
    content = state.get('predictor.query_content.weight')
    logits = state['predictor.cls_head.weight'].shape[0]
    labels = state.get('predictor.denoiser.label_embed.weight')
    num_classes = logits if labels is None else labels.shape[0]
    config = dict(
        num_classes=num_classes,
        in_channels=encoded if finest_is_encoded else [finest, *encoded],
        num_queries=300 if content is None else content.shape[0],
        feat_channels=feat_channels,
        out_channels=state['pixel_decoder.mask_features.weight'].shape[0],
        pixel_decoder=dict(
            num_levels=levels,
            num_extra_levels=levels - len(encoded),
            **_transformer(take_prefix(state, 'pixel_decoder.')),
        ),
        transformer_decoder=_transformer(take_prefix(state, 'predictor.decoder.')),
        two_stage=two_stage,
    )
    if two_stage and content is not None:
        config['learned_content'] = True
    if labels is not None:
        config['denoising'] = dict(num_queries=100)
    if logits > num_classes:
        config['loss_cls'] = dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=4.0,
            class_weight=[1.0] * num_classes + [0.1],
        )
    return config


def _transformer(state: State) -> Config:
    """Depth and width of the MLPs of a stack of layers."""
    return dict(
        num_layers=count_entries(state, 'layers'),
        feedforward_channels=state['layers.0.ffn.layers.0.0.weight'].shape[0],
    )


def host_backbone(state: State) -> Config | None:
    """Config of the ResNet or SwinTransformer of mmdet and mmseg that a state dict holds."""
    state = take_prefix(state, 'backbone.')
    stages = tuple(count_entries(state, rf'layer{i}') for i in range(1, 5))
    if stages in _RESNETS and 'layer1.0.conv3.weight' in state:
        return dict(
            type='ResNet',
            depth=_RESNETS[stages],
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            norm_cfg=dict(type='BN', requires_grad=False),
            norm_eval=True,
            style='pytorch',
        )
    depths = tuple(count_entries(state, rf'stages\.{i}\.blocks') for i in range(4))
    tables = [
        state.get(f'stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table') for i in range(4)
    ]
    if not all(depths) or any(table is None for table in tables):
        return None
    return dict(
        type='SwinTransformer',
        embed_dims=state['patch_embed.projection.weight'].shape[0],
        depths=depths,
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=(int(tables[0].shape[0] ** 0.5) + 1) // 2,
        out_indices=(0, 1, 2, 3),
    )


def untold(state: State, part: str, released: bool) -> str:
    """What a config of this head needs and no tensor tells, in words."""
    head = take_prefix(state, f'{part}.')
    points = []
    if not released:
        points.append('`double_norm`, `mask_padding` and `proposal_sizes`')
    if 'predictor.memory_trans_fc.weight' in head:
        if 'predictor.query_content.weight' not in head:
            points.append("`num_queries` (the authors' have 300)")
        points.append(
            "`box_init`, by default 'no' (the authors' models: 'mask2box' for COCO instances with "
            "R50 and 2048 feedforward_channels, 'bitmask' with 1024 or with Swin-L of 59.0 box AP, "
            "'no' with Swin-L of 58.3 and for panoptic segmentation)"
        )
    if 'predictor.denoiser.label_embed.weight' not in head:
        points.append('whether the last class is "no object"')
    if part == 'panoptic_head':
        points.append('how many of the classes are things')
    return '; '.join(points)
