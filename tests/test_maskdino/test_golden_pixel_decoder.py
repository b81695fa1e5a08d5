"""The pixel decoder against the authors', with converted weights."""

import pytest
import torch

from itpn_mm.checkpoint.maskdino import from_maskdino
from itpn_mm.maskdino.pixel_decoder import MaskDINOPixelDecoder

from .golden import PIXEL_DECODER, assert_close, index, load, take

pytestmark = pytest.mark.checklist('parity')

FIXTURES = [name for name in index() if name.startswith('a')]
CASES = [(name, case) for name in FIXTURES for case in index()[name]['cases']]


def build(entry: dict, tensors: dict) -> MaskDINOPixelDecoder:
    kwargs = entry['kwargs']
    state = {f'{PIXEL_DECODER}{k}': v for k, v in take(tensors, 'state.').items()}
    converted, report = from_maskdino(state)
    assert not report.unexplained
    assert not report.dropped
    decoder = MaskDINOPixelDecoder(
        kwargs['in_ch'],
        num_levels=kwargs['levels'],
        num_extra_levels=kwargs['levels'] - len(kwargs['in_feats_enc']),
        feat_channels=kwargs['conv_dim'],
        out_channels=kwargs['mask_dim'],
        num_layers=kwargs['layers'],
        feedforward_channels=kwargs['ffn'],
    )
    decoder.load_state_dict(take(converted, 'decode_head.pixel_decoder.'))
    return decoder


@pytest.mark.parametrize(('name', 'case'), CASES)
def test_golden_pixel_decoder(name, case):
    entry, tensors = load(name)
    found = take(tensors, f'{case}.')
    maps = [found[f'in.{i}'] for i in range(4)]
    with torch.no_grad():
        mask_features, memory = build(entry, tensors)(maps)
    assert_close(mask_features, found['mask_features'], entry)
    levels = memory.to_maps()
    # the authors' order, by size
    wanted = [found[f'memory.{i}'] for i in range(len(levels))]
    for level, expected in zip(
        levels, sorted(wanted, key=lambda m: -m.shape[-2:].numel()), strict=True
    ):
        assert_close(level, expected, entry)


def test_golden_position_and_reference_points():
    entry, tensors = load('a1_pixel_3lvl_high2low')
    decoder = build(entry, tensors)
    found = take(tensors, 'square.')
    maps = [found[f'in.{i}'] for i in range(4)]
    with torch.no_grad():
        levels = decoder._project(maps, None)
        position = decoder.positions(levels)
    sizes = [h * w for h, w in levels.sizes]

    def fine_first(tokens):
        return torch.cat(tokens.split(sizes[::-1], 1)[::-1], 1)

    assert_close(position, fine_first(found['lvl_pos']), entry)
    assert_close(levels.centres[None], fine_first(found['reference_points'])[:, :, 0], entry)
    for level, expected in zip(
        levels.to_maps(), (found[f'proj.{i}'] for i in (2, 1, 0)), strict=True
    ):
        assert_close(level, expected, entry)
