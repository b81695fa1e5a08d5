"""Backbone and pyramid in segmentors of mmseg and in MaskDINO, as tests/test_swap_in.py does it."""

from pathlib import Path

import pytest
from mmengine.config import Config

from itpn_mm.engine import check_model_fits
from itpn_mm.recipes import swap_in

from .test_configs import MASKDINO, PATHS, read
from .test_configs_segmentation import build_on_meta
from .tiny_configs import shrink, train

R50 = [name for name in MASKDINO if name.startswith('maskdino_r50_')]
LINES = """
from itpn_mm.recipes import layer_wise_adamw, swap_in

model = swap_in(_base_.model, 'fastitpn-base')
optim_wrapper = layer_wise_adamw('fastitpn-base')
custom_hooks = [dict(type='itpn_mm.PreflightHook')]
"""


def find_stock(path: str) -> str:
    mmseg = pytest.importorskip('mmseg')
    return str(Path(mmseg.__path__[0]) / '.mim' / 'configs' / path)


def swap(base: str, tmp_path: Path) -> Config:
    """A config as a user writes it."""
    path = tmp_path / 'own.py'
    path.write_text(f'_base_ = {base!r}\n{LINES}')
    return Config.fromfile(path)


def test_upernet(tmp_path):
    """Trains a step and tests whole images in the stock Runner."""
    stock = find_stock('upernet/upernet_r50_4xb4-160k_ade20k-512x512.py')
    cfg = swap(stock, tmp_path)
    assert Config.fromfile(stock).model.pretrained is not None
    assert cfg.model.pretrained is None
    assert cfg.model.neck.out_strides == (4, 8, 16, 32)
    assert cfg.model.decode_head.in_channels == [256] * 4
    assert cfg.model.auxiliary_head.in_channels == 256
    assert cfg.model.data_preprocessor.size == (512, 512)  # of crops, as it was
    assert cfg.model.data_preprocessor.test_cfg == dict(size_divisor=32)
    build_on_meta(cfg)
    runner, gradients = train(shrink(cfg, 'own_ade20k-512x512', tmp_path))
    assert gradients.keys() == dict(runner.model.named_parameters()).keys()
    assert all(value.isfinite() and value > 0 for value in gradients.values())
    assert 'val/mIoU' in runner.message_hub.log_scalars
    assert len({group['lr'] for group in runner.optim_wrapper.optimizer.param_groups}) == 3


def test_mask2former_of_mmseg(tmp_path):
    cfg = swap(find_stock('mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'), tmp_path)
    assert cfg.model.neck.out_strides == (4, 8, 16, 32)
    model = build_on_meta(cfg)
    model.neck.level_channels = (256, 256, 256, 512)
    with pytest.raises(ValueError, match=r'`decode_head\.in_channels` is \(256, 256, 256, 256\), '):
        check_model_fits(model)


def test_dilated_maps_are_asked_for(tmp_path):
    """They are no pyramid; one that is chosen instead fits."""
    stock = Config.fromfile(find_stock('pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'))
    with pytest.raises(ValueError, match=r'`strides` must be given: .*EncoderDecoder'):
        swap_in(stock.model)
    upernet = Config.fromfile(find_stock('upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'))
    upernet.model.backbone.dilations = (1, 1, 2, 4)
    with pytest.raises(ValueError, match=r'`strides` must be given: .*EncoderDecoder'):
        swap_in(upernet.model)
    parts = swap_in(stock.model, strides=(4, 8, 16, 32))
    assert parts['decode_head'] == parts['auxiliary_head'] == dict(in_channels=256)


def test_several_heads(tmp_path):
    """A list is replaced as a whole, so that all of it has to be there."""
    heads = [dict(type='FCNHead', in_channels=128, in_index=i, channels=8) for i in (1, 2)]
    decode_head = dict(in_channels=[8, 8, 8, 8], in_index=[0, 1, 2, 3])
    parts = swap_in(dict(decode_head=decode_head, auxiliary_head=heads))
    assert parts['auxiliary_head'] == [dict(head, in_channels=256) for head in heads]
    assert parts['decode_head'] == dict(in_channels=[256] * 4)


@pytest.mark.parametrize('name', R50)
def test_maskdino(name, tmp_path):
    read(name)  # skips without the host
    cfg = swap(str(PATHS[name]), tmp_path)
    assert cfg.model.neck.out_strides == (4, 8, 16, 32)
    model = build_on_meta(cfg)
    head = model.decode_head if 'decode_head' in cfg.model else model.panoptic_head
    assert head.pixel_decoder.in_channels == (256,) * 4
    if 'panoptic_head' in cfg.model:
        assert cfg.model.data_preprocessor.pad_size_divisor == 32


@pytest.mark.parametrize('name', R50)
def test_maps_that_maskdino_does_not_take(name, tmp_path):
    read(name)  # skips without the host
    cfg = swap(str(PATHS[name]), tmp_path)
    part = 'decode_head' if 'decode_head' in cfg.model else 'panoptic_head'
    cfg.model[part].in_channels = [256, 256, 256, 512]
    message = (
        rf'`{part}\.in_channels` is \(256, 256, 256, 512\), but neck TransformerPyramidNeck gives '
        r'maps of \(256, 256, 256, 256\) \(channels\); make them equal'
    )
    with pytest.raises(ValueError, match=message) as info:
        build_on_meta(cfg)
    assert '\n' not in str(info.value)


def test_five_levels_are_padded_for():
    head = dict(type='itpn_mm.MaskDINOHead', in_channels=[256] * 5)
    parts = swap_in(dict(panoptic_head=head, data_preprocessor={}))
    assert parts['neck']['out_strides'] == (4, 8, 16, 32, 64)
    assert parts['data_preprocessor']['pad_size_divisor'] == 64
    assert 'panoptic_head' not in parts
