"""Golden fixtures: outputs of the released reference models on small random weights.

What a fixture holds is written in ``data/golden/index.json``; its tensors are called
``sd/<key>``, ``in/<case>/<name>``, ``mid/<case>/<name>``, ``out/<case>/<name>`` and
``grad/<case>/<parameter>``. See ``data/README.md``.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.checkpoint import remap
from itpn_mm.necks import TransformerPyramidNeck
from tests.checklist import note_figure

DATA = Path(__file__).parent / 'data' / 'golden'
INDEX = json.loads((DATA / 'index.json').read_text())
DTYPES = (torch.float32, torch.float64)
OUT_STRIDES = (4, 8, 16, 32, 64)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def names(*kinds: str) -> list[str]:
    """Fixtures of these kinds; there is at least one of each."""
    found = [name for name, info in INDEX.items() if info['kind'] in kinds]
    assert {INDEX[name]['kind'] for name in found} == set(kinds), f'no fixture for one of {kinds}'
    return found


def cases(*kinds: str) -> list:
    """Parameters (fixture, case, dtype) for every case of these kinds."""
    return [
        pytest.param(name, case, dtype, id=f'{name}-{case}-{_name_of(dtype)}')
        for name in names(*kinds)
        for case in INDEX[name]['cases']
        for dtype in DTYPES
    ]


def load(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a fixture (one or several files), the floating-point ones in ``dtype``."""
    tensors = {}
    for path in (*DATA.glob(f'{name}.safetensors'), *DATA.glob(f'{name}.part*.safetensors')):
        tensors.update(load_file(path))
    assert tensors, f'no fixture {name} in {DATA}'
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max |a - b| / max |b|, the measure of the tolerances."""
    assert actual.shape == expected.shape, f'{tuple(actual.shape)} is not {tuple(expected.shape)}'
    actual, expected = actual.detach().double(), expected.double()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_matches(
    actual: Tensor, expected: Tensor, name: str, what: str, dtype: torch.dtype | None = None
) -> None:
    """Compare at the tolerance of fixture ``name`` for models in ``dtype`` (that of ``actual``)."""
    kind = _name_of(dtype or actual.dtype)
    tolerance = INDEX[name]['tolerance'][kind]
    error = relative_error(actual, expected)
    note_figure(f'relative error, {kind}', error, f'<= {tolerance:.0e}')
    assert error <= tolerance, f'{name}, {what}: relative error {error:.2e} > {tolerance:.0e}'


def our_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixture's weights, given the names that they have in our models."""
    state, report = remap(under(tensors, 'sd/'))
    assert report.layout == 'authors' and not report.unexplained
    return state


def build_backbone(name: str, state: dict[str, Tensor]) -> HiViT:
    """The backbone that a fixture describes, with the fixture's weights, strictly loaded."""
    info = INDEX[name]
    kwargs = info['kwargs']
    depth1, depth2 = (kwargs.get(f'mlp_depth{i}', kwargs.get('mlp_depth')) for i in (1, 2))
    rel_pos = ('decomposed' if info['kind'] == 'det_clip' else 'block') if kwargs['rpe'] else None
    backbone = HiViT(
        dict(
            embed_dims=kwargs['embed_dim'],
            depths=(depth1, depth2, kwargs['depth']),
            num_heads=kwargs['num_heads'],
        ),
        img_size=kwargs['img_size'],
        patch_size=kwargs['patch_size'],
        stem_mlp_ratio=kwargs['bridge_mlp_ratio'],
        mlp_ratio=kwargs['mlp_ratio'],
        rel_pos_bias=rel_pos,
        layer_scale_init_value=kwargs.get('init_values'),
        norm_eps=info['norm_eps'],
    )
    # Two reference classes keep a 14 x 14 position table whatever `img_size` is, beside relative
    # tables that fit `img_size`; ours has one grid for both.
    side = round(state['backbone.pos_embed'].shape[1] ** 0.5)
    if (side, side) != backbone.grid:
        backbone.grid = (side, side)
        backbone.pos_embed = nn.Parameter(torch.empty(1, side * side, backbone.embed_dims))
    backbone.load_state_dict(under(state, 'backbone.'), strict=True)
    return backbone.to(state['backbone.pos_embed'].dtype).eval()


REL_POS = dict(
    use_rel_pos_bias='block',
    use_shared_rel_pos_bias='shared',
    use_shared_decoupled_rel_pos_bias='decoupled',
)


def build_fast_backbone(name: str, state: dict[str, Tensor]) -> FastiTPN:
    """The Fast-iTPN that a fixture describes, with the fixture's weights, strictly loaded."""
    info = INDEX[name]
    kwargs = info['kwargs']
    size = kwargs['img_size']
    backbone = FastiTPN(
        dict(
            embed_dims=kwargs['embed_dim'],
            depths=(kwargs['depth_stage1'], kwargs['depth_stage2'], kwargs['depth']),
            num_heads=kwargs['num_heads'],
        ),
        img_size=size if isinstance(size, int) else tuple(size),
        stem_mlp_ratio=kwargs['bridge_mlp_ratio'],
        mlp_ratio=kwargs['mlp_ratio'],
        qkv_bias=kwargs['qkv_bias'],
        sub_norm=kwargs['subln'],
        swiglu=kwargs['naiveswiglu'],
        cls_token=kwargs.get('cls_token', False),
        use_abs_pos_emb=kwargs.get('use_abs_pos_emb', True),
        rel_pos_bias=next((kind for key, kind in REL_POS.items() if kwargs.get(key)), None),
        layer_scale_init_value=kwargs['init_values'] or None,
        norm_eps=info['norm_eps'],
    )
    backbone.load_state_dict(under(state, 'backbone.'), strict=True)
    return backbone.to(state['backbone.patch_embed.proj.bias'].dtype).eval()


def build_neck(
    name: str, state: dict[str, Tensor], out_strides: tuple[int, ...] | None = None, **overrides
) -> TransformerPyramidNeck:
    """The pyramid that a fixture describes, with the fixture's weights, strictly loaded."""
    info = INDEX[name]
    kwargs = {**info['kwargs'], **overrides}
    dim = kwargs['embed_dim']
    segmentation = info['kind'] == 'seg'
    neck = TransformerPyramidNeck(
        (dim // 4, dim // 2, dim),
        kwargs['fpn_dim'],
        out_strides=out_strides or OUT_STRIDES[: kwargs['num_outs']],
        depth=kwargs['fpn_depth'],
        mlp_ratio=kwargs['mlp_ratio'],
        pool='max' if segmentation else 'avg',
        concat_inputs=segmentation,
        norm_eps=info['norm_eps'],
    )
    neck.load_state_dict(under(state, 'neck.'), strict=True)
    return neck.to(state['backbone.pos_embed'].dtype).eval()


def resample_as_masked(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the reference makes of a square position table (1, L, C) while patches are masked.

    It resamples the table by (n + 0.1) / side even onto its own grid. That is an accident, which
    `resize_pos_embed` does not repeat: tests that need it have it here.
    """
    side = round(table.shape[1] ** 0.5)
    x = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    x = F.interpolate(x, scale_factor=tuple((n + 0.1) / side for n in grid), mode='bicubic')
    return x.flatten(2).transpose(1, 2)


def by_patch(x: Tensor, side: int) -> Tensor:
    """A dense map in the reference's layout, for patches of s x s cells.

    (B, H * s, W * s, C) -> (B, H * W, s, s, C)
    """
    b, height, width, c = x.shape
    x = x.view(b, height // side, side, width // side, side, c).transpose(2, 3)
    return x.reshape(b, -1, side, side, c)
