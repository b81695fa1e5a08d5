"""`itpn_mm.` types build from the scope of every host, and are ours."""

import importlib

import pytest
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.necks import TransformerPyramidNeck

HOSTS = ('mmpretrain', 'mmdet', 'mmseg', 'mmrotate')
ARCH = dict(embed_dims=16, depths=[1, 1, 1], num_heads=2)


@pytest.mark.parametrize('kind', [HiViT, FastiTPN])
@pytest.mark.parametrize('host', [None, 'mmengine', *HOSTS])
def test_types_build_from_every_scope(host, kind):
    registry = ROOT
    if host in HOSTS:
        pytest.importorskip(host)
        registry = importlib.import_module(f'{host}.registry').MODELS
    with DefaultScope.overwrite_default_scope(host):
        backbone = registry.build(
            ConfigDict(type=f'itpn_mm.{kind.__name__}', arch=ARCH, img_size=64)
        )
        neck = registry.build(
            ConfigDict(
                type='itpn_mm.TransformerPyramidNeck',
                in_channels=list(backbone.out_channels),
                out_channels=8,
            )
        )
    assert type(backbone) is kind
    assert type(neck) is TransformerPyramidNeck


def test_without_the_scope_it_is_mmpretrains_class():
    """Why our configs always write the scope."""
    models = pytest.importorskip('mmpretrain.models')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        other = ROOT.build(dict(type='HiViT', arch='tiny'))
    assert isinstance(other, models.backbones.HiViT)
    assert not isinstance(other, HiViT)
