"""The models by name, in each formulation, all with the same weights."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Container
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.peers import PEERS
from benchmarks.plain import PlainHiViT, PlainModel, PlainPyramid
from benchmarks.plain_fast_itpn import PlainFastiTPN, plain_state
from itpn_mm.acceleration import TokenMigration
from itpn_mm.acceleration.settings import SETTINGS
from itpn_mm.backbones import FastiTPN, HiViT
from itpn_mm.necks import TransformerPyramidNeck

OUT_CHANNELS = 256
# (embed_dims, depths, num_heads) small enough for a test, with every kind of block
TINY_ARCH = dict(embed_dims=64, depths=(1, 1, 5), num_heads=2)
SIZES = ('tiny', 'small', 'base', 'large')
FAMILIES = dict(hivit=HiViT, fastitpn=FastiTPN)
PLAIN = dict(hivit=PlainHiViT, fastitpn=PlainFastiTPN)
# the pyramids that the released models were pre-trained with
PYRAMIDS = dict(hivit=dict(depth=2), fastitpn=dict(depth=1, bias=True))
MODELS = {
    f'{family}-{size}': arch
    for family, kind in FAMILIES.items()
    for size, arch in ({size: kind.arch_zoo[size] for size in SIZES} | dict(test=TINY_ARCH)).items()
}


@dataclass(frozen=True)
class Candidate:
    """What is measured.

    Args:
        model: A name in ``MODELS``, or in ``PEERS``.
        variant: ``'plain'``, a setting (see :func:`arguments_of`), or ``'peer'``.
        pyramid: With the pyramid (maps at strides 4 to 64), or the backbone alone.
        compiled: Under ``torch.compile``.
    """

    model: str
    variant: str
    pyramid: bool = True
    compiled: bool = False

    @property
    def label(self) -> str:
        """Variant and how it is run."""
        return self.variant + (', compiled' if self.compiled else '')

    @property
    def accelerated(self) -> bool:
        """Whether the outputs may differ from those of the dense path."""
        return self.variant not in ('plain', 'dense', 'peer')

    @property
    def eager(self) -> Candidate:
        """The same, not compiled."""
        return replace(self, compiled=False)


def arguments_of(setting: str) -> dict:
    """Arguments of `TokenMigration` for a setting.

    Args:
        setting: A name in ``SETTINGS``, maybe with the schedule: ``'migration-20@2'`` takes tokens
            away before every second layer.

    Raises:
        ValueError: There is no such setting.
    """
    name, at, every = setting.partition('@')
    if name not in SETTINGS:
        raise ValueError(f'there is no setting {name!r}; take one of {", ".join(SETTINGS)}')
    if not at:
        return SETTINGS[name]
    if not SETTINGS[name].get('ratio') or not every.isdigit() or every == '0':
        raise ValueError(
            f'{setting!r}: `@` and a number of at least 1 tell the schedule of a setting with '
            'migration, as in migration-20@2'
        )
    return SETTINGS[name] | dict(schedule=dict(every=int(every)))


class DetectorTrunk(nn.Module):
    """A backbone of the package, and its neck if there is one, as a detector uses them."""

    def __init__(self, backbone: HiViT, neck: TransformerPyramidNeck | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> maps at strides 4, 8, 16, with the pyramid also 32 and 64."""
        maps = self.backbone(img)
        return maps if self.neck is None else self.neck(maps)


def randomise(model: nn.Module, fixed: Container[str] = ()) -> None:
    """Draw all weights so that every branch matters: a wrong one then shows in the outputs.

    What a parameter gets depends on its name and shape alone, so two models have the same weights
    where they have the same parameters. Those named in `fixed` stay as they are.
    """
    for name, parameter in model.named_parameters():
        if name in fixed:
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and 'pos_embed' not in name:
            noise = noise * parameter[0].numel() ** -0.5
        else:
            noise = noise * 0.1
            if ('norm' in name and name.endswith('weight')) or 'gamma' in name:
                noise = noise + 1
        parameter.data.copy_(noise)


def shipped(candidate: Candidate) -> nn.Module:
    """A model of the package with a setting of acceleration."""
    family = candidate.model.split('-')[0]
    backbone = FAMILIES[family](copy.deepcopy(MODELS[candidate.model]))
    neck = None
    if candidate.pyramid:
        neck = TransformerPyramidNeck(backbone.out_channels, OUT_CHANNELS, **PYRAMIDS[family])
    if candidate.variant != 'dense':
        backbone = TokenMigration(backbone, **arguments_of(candidate.variant))
    return DetectorTrunk(backbone, neck)


def plain(candidate: Candidate) -> PlainModel:
    """The dense model written as the formulas read."""
    family, arch = candidate.model.split('-')[0], MODELS[candidate.model]
    neck = None
    if candidate.pyramid:
        channels = tuple(arch['embed_dims'] // i for i in (4, 2, 1))
        neck = PlainPyramid(channels, OUT_CHANNELS, **PYRAMIDS[family])
    return PlainModel(PLAIN[family](**arch), neck)


def skeleton(candidate: Candidate, size: tuple[int, int]) -> nn.Module:
    """The candidate on device ``meta``, where nothing is allocated or computed."""
    if candidate.variant == 'peer':
        return PEERS[candidate.model](size).to('meta')
    with torch.device('meta'):
        return plain(candidate) if candidate.variant == 'plain' else shipped(candidate)


def build(candidate: Candidate, size: tuple[int, int], share: nn.Module | None = None) -> nn.Module:
    """The candidate, not compiled, in evaluation mode.

    Args:
        candidate: What to build.
        size: Height and width of images, for peers that are built for one size.
        share: The dense model with the same weights: memory of its parameters is used again.
    """
    if candidate.variant == 'peer':
        peer = PEERS[candidate.model](size)
        peer.eval()  # gives nothing back in Swin
        return peer
    if candidate.variant == 'plain':
        dense = share or build(replace(candidate, variant='dense'), size)
        state = dense.state_dict()
        model = plain(candidate)
        model.load_state_dict(
            plain_state(state) if candidate.model.startswith('fastitpn-') else state, strict=True
        )
        return model.eval()
    model = shipped(candidate)
    shared = {} if share is None else share.state_dict()
    model.load_state_dict(shared, strict=False, assign=True)
    randomise(model, fixed=shared)
    return model.eval()
