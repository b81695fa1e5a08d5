"""The registered component that makes a backbone faster."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from itpn_mm.backbones import HiViT
from itpn_mm.registry import MODELS

from .acceleration import Acceleration, Departure

DEFAULT_SCHEDULE = MappingProxyType(dict(every=4))


@MODELS.register_module()
def TokenMigration(
    backbone: HiViT | Mapping,
    ratio: float = 0.0,
    schedule: Mapping[str, int | Sequence[int]] = DEFAULT_SCHEDULE,
    window_size: int = 16,
    window_attention: bool = False,
    global_layers: Sequence[int] = (),
    gathering: bool = False,
    rel_pos_bias: str | None = None,
) -> HiViT:
    """Make a backbone faster: token migration, window attention, gathering tokens (Section 4).

    The backbone itself is returned, with an ``acceleration`` that runs its stage 3. So names of
    parameters, channels, layer decay and the loading of checkpoints stay what they were, and a
    checkpoint fits with and without acceleration. What gathering and relative positions add starts
    such that nothing changes, and is trained in fine-tuning; it is all under ``acceleration.``.

    Token migration (Section 4.1): before some layers, the tokens of each window that are most
    like another one of their window leave. They come back at their places after the last layer
    (replenishing), so the maps are complete. How many leave depends on nothing but the size of the
    image.

    Window attention and token gathering (Section 4.2): patches attend to their window only. Each
    window has a gathering token, which attends to the window as well, and in every such layer all
    tokens then attend to all gathering tokens.

    Args:
        backbone: :class:`HiViT` or :class:`FastiTPN`, or the config of one.
        ratio: Share of the tokens of a window, in [0, 1), that leave over all layers.
        schedule: Where they leave, the same number each time: ``dict(every=k)``, before layers 0,
            k, 2k, ... of stage 3 (the paper: 1); ``dict(first=m)``, before layers 0 to m - 1;
            ``dict(layers=[...])``, before these. Each selection takes time; early ones save more
            and lose more.
        window_size: Longest side of a window in tokens, at least 2. Images are cut evenly into as
            few windows as this allows.
        window_attention: Whether attention stays in windows.
        global_layers: Layers of stage 3 where it is global nevertheless, as in ViTDet.
        gathering: Whether windows have gathering tokens; needs ``window_attention``.
        rel_pos_bias: Learned relative position bias: ``None``; ``'window'``, between the patches
            of a window (HRPE of Table VII); ``'all'``, also between patches and gathering tokens
            (RPE). The two need ``window_attention``; a ``rel_pos_bias`` of the backbone itself
            stays in force where this is ``None``.

    Returns:
        The backbone.

    Raises:
        ValueError: An argument does not fit.
    """
    if isinstance(backbone, Mapping):
        backbone = MODELS.build(backbone)
    if not isinstance(backbone, HiViT):
        raise ValueError(
            '`backbone` of TokenMigration must be an itpn_mm.HiViT or itpn_mm.FastiTPN, or the '
            f'config of one, but got {type(backbone).__name__}'
        )
    if backbone.acceleration is not None:
        raise ValueError('`backbone` has an acceleration already; wrap it once')
    attention = backbone.stages[2][0].attn
    if rel_pos_bias is not None and (backbone.rel_pos or attention.rel_pos) is not None:
        raise ValueError(
            f'`rel_pos_bias={rel_pos_bias!r}` of TokenMigration and `rel_pos_bias` of the backbone '
            'exclude each other; set one of them to None'
        )
    backbone.acceleration = Acceleration(
        backbone.embed_dims,
        attention.num_heads,
        backbone.depths[2],
        ratio=ratio,
        schedule=schedule,
        window_size=window_size,
        window_attention=window_attention,
        global_layers=global_layers,
        gathering=gathering,
        rel_pos_bias=rel_pos_bias,
    )
    return backbone


@torch.no_grad()
def trace_migration(backbone: HiViT, images: Tensor) -> list[Departure]:
    """The tokens that leave a backbone, layer by layer, for images (B, 3, H, W).

    Raises:
        ValueError: The backbone has no acceleration.
    """
    if backbone.acceleration is None:
        raise ValueError('`backbone` has no acceleration; build it by TokenMigration')
    *_, x, tokens = backbone.forward_stem(images)
    x = backbone.add_positions(x.flatten(1, 2), tokens)
    return backbone.acceleration.run(backbone, x, tokens)[2]
