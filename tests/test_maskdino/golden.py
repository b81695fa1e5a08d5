"""Reads the fixtures of MaskDINO: tensors of a float64 run of the authors' code, and weights."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from itpn_mm.checkpoint.maskdino import from_maskdino
from itpn_mm.maskdino import MaskDINOBase
from itpn_mm.maskdino.head import FOCAL
from tests.checklist import note_figure

DATA = Path(__file__).parents[1] / 'data' / 'maskdino'
PIXEL_DECODER, PREDICTOR = 'sem_seg_head.pixel_decoder.', 'sem_seg_head.predictor.'


@cache
def index() -> dict:
    """What each fixture is."""
    fixtures = json.loads((DATA / 'index.json').read_text())
    del fixtures['_readme']
    return fixtures


def load(name: str) -> tuple[dict, dict[str, Tensor]]:
    """Entry of the index and tensors of a fixture."""
    entry = index()[name]
    return entry, load_file(DATA / entry['file'])


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with the prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def assert_close(found: Tensor, wanted: Tensor, entry: dict) -> None:
    """Compare at the tolerance of the fixture."""
    found, tolerance = found.detach().to(wanted.dtype), entry['tolerance']
    torch.testing.assert_close(found, wanted, **tolerance, check_stride=False)
    if wanted.numel() and wanted.is_floating_point():
        allowed = tolerance['atol'] + tolerance['rtol'] * wanted.abs()
        share = ((found - wanted).abs() / allowed).max().item()
        note_figure('MaskDINO: error as a share of the tolerance', share, '<= 1')


def state_of(entry: dict, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a fixture, drawn by its recipe where they are not in it, with second names."""
    state = take(tensors, 'state.')
    for name, recipe in entry.get('weight_recipe', {}).items():
        seed = (zlib.crc32(name.encode()) ^ entry['seed']) & 0xFFFFFFFF
        values = np.random.RandomState(seed).standard_normal(size=recipe['shape'])
        values = values * recipe['scale'] + recipe['offset']
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state | {alias: state[name] for alias, name in entry.get('aliases', {}).items()}


def build_predictor(entry: dict, state: dict[str, Tensor], **options: object) -> torch.nn.Module:
    """A predictor with the weights of a fixture, which its pixel decoder's shape comes with."""
    kwargs = entry['kwargs']
    num_classes, width = kwargs['num_classes'], kwargs['hidden']
    ce, coarse_first = kwargs.get('ce', False), entry['x_order'] == 'high2low'
    # A file tells the order of levels by the maps that its pixel decoder takes.
    widths = range(kwargs['levels'], 0, -1) if coarse_first else range(1, kwargs['levels'] + 1)
    projections = {
        f'{PIXEL_DECODER}input_proj.{i}.0.weight': torch.zeros(1, width, 1, 1)
        for i, width in enumerate(widths)
    }
    named = {f'{PREDICTOR}{name}': tensor for name, tensor in state.items()}
    converted, report = from_maskdino(named | projections)
    assert not report.unexplained
    head = MaskDINOBase(
        num_classes,
        [32] * 4,
        num_queries=kwargs['queries'],
        feat_channels=width,
        out_channels=kwargs.get('mask_dim', width),
        pixel_decoder=dict(num_levels=kwargs['levels'], num_layers=0),
        transformer_decoder=dict(num_layers=kwargs['layers'], feedforward_channels=kwargs['ffn']),
        two_stage=kwargs['two_stage'],
        learned_content=kwargs['two_stage'] and kwargs.get('learn_tgt', False),
        loss_cls=cross_entropy(num_classes) if ce else FOCAL,
        denoising=dict(
            num_queries=kwargs.get('dn_num', 100), noise_scale=kwargs.get('noise_scale', 0.4)
        ),
        **report.arguments,
        **options,
    )
    prefix = 'panoptic_head.predictor.' if kwargs['two_stage'] else 'decode_head.predictor.'
    head.predictor.load_state_dict(take(converted, prefix))
    return head.predictor


def cross_entropy(num_classes: int, no_object: float = 0.1) -> dict:
    """Config of the cross-entropy with "no object"."""
    return dict(
        type='mmdet.CrossEntropyLoss',
        use_sigmoid=False,
        loss_weight=4.0,
        class_weight=[1.0] * num_classes + [no_object],
    )


def theirs(name: str) -> str:
    """What the authors call a set of predictions of ours."""
    return {'': 'final', 'enc_': 'interm'}.get(name, f'aux.{name[1:-1]}')


def our_losses(entry: dict) -> list[str]:
    """Our names of the losses of a fixture, in its order."""
    kinds = dict(ce='cls', mask='mask', dice='dice', bbox='bbox', giou='iou')
    names = []
    for name in entry['loss_names']:
        _, kind, *rest = name.split('_')
        noisy = 'dn_' if 'dn' in rest else ''
        where = [part for part in rest if part != 'dn']
        prefix = '' if not where else 'enc_' if where == ['interm'] else f'd{where[0]}.'
        names.append(f'{prefix}{noisy}loss_{kinds[kind]}')
    return names
