"""The backbone and the pyramid of a model of any OpenMMLab package, without the rest of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from itpn_mm.backbones import HiViT
from itpn_mm.checkpoint import load_pretrained, read_checkpoint, remap

RANDOM = 'random'  # in the place of a checkpoint
PROBE = 256  # pixels of the maps that show what a neck makes of them


class Parts(NamedTuple):
    """Configs of the parts of a model.

    Args:
        backbone: Of the backbone, accelerated or not.
        neck: Of what stands beside it as `neck`, or None.
        preprocessor: Of the data preprocessor of any OpenMMLab package.
        prefix: What precedes `backbone.` in the names of the model's parameters.
    """

    backbone: Mapping[str, Any]
    neck: Any
    preprocessor: Mapping[str, Any]
    prefix: str


class Looked(NamedTuple):
    """A backbone, its pyramid if there is one, and what prepares their pictures."""

    backbone: HiViT
    neck: nn.Module | None
    preprocessor: nn.Module

    def pyramid(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """The pyramid's own maps (B, C, H / s, W / s) from those of the backbone."""
        if self.neck is None:
            return []
        levels = [x for x in self.neck(maps) if x.ndim == 4]
        if getattr(self.neck, 'concat_inputs', False):  # the backbone's channels come after
            levels = [x[:, : self.neck.out_channels] for x in levels]
        return levels


def find_parts(cfg: Config) -> Parts:
    """Find backbone and neck in a config, also of a model that stands in another one.

    The config's scope becomes the default one.

    Raises:
        ValueError: There is no backbone.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    preprocessor = cfg.get('model', {}).get('data_preprocessor') or cfg.get('data_preprocessor')
    queue = [('', cfg.get('model', {}))]
    while queue:  # the outermost comes first: a teacher has a backbone, too
        prefix, model = queue.pop(0)
        if isinstance(model.get('backbone'), Mapping):
            return Parts(model['backbone'], model.get('neck'), preprocessor or {}, prefix)
        queue += [(f'{prefix}{k}.', v) for k, v in model.items() if isinstance(v, Mapping)]
    raise ValueError(f'{cfg.filename}: has no `model.backbone`')


def build_preprocessor(settings: Mapping[str, Any]) -> nn.Module:
    """What normalises and pads pictures, by the config of any package's data preprocessor.

    The packages' own classes differ in what else they take and return.
    """
    common = {k: settings[k] for k in ('mean', 'std', 'pad_size_divisor') if k in settings}
    rgb = settings.get('bgr_to_rgb', settings.get('to_rgb', False))
    return ImgDataPreprocessor(**common, bgr_to_rgb=rgb)


def load_parts(parts: Parts, checkpoint: str) -> tuple[Looked, list[str]]:
    """Build backbone and pyramid, and load a checkpoint into them.

    Args:
        parts: What to build.
        checkpoint: File with the weights, or `RANDOM` for those that training from scratch
            starts with. A file of a backbone alone leaves the pyramid out.

    Returns:
        The model in evaluation mode, and notes on what was left out.

    Raises:
        ValueError: The backbone is not one of itpn_mm, or the checkpoint does not fit.
        FileNotFoundError: There is no such checkpoint.
    """
    torch.manual_seed(0)
    backbone = MODELS.build(dict(parts.backbone))
    if not isinstance(backbone, HiViT):
        raise ValueError(
            f'the backbone is a {type(backbone).__name__}, but must be an itpn_mm.HiViT or '
            'itpn_mm.FastiTPN, accelerated or not'
        )
    neck = None if parts.neck is None else MODELS.build(parts.neck)
    if neck is not None and not _gives_maps(backbone, neck.eval()):
        neck = None  # the pooling of a classifier
    notes = []
    if checkpoint != RANDOM:
        # A file of the backbone alone has no prefix, which `None` allows.
        load_pretrained(backbone, checkpoint, f'{parts.prefix}backbone.' if parts.prefix else None)
        names, prefix = remap(read_checkpoint(checkpoint))[0], f'{parts.prefix}neck.'
        if neck is not None and not any(name.startswith(prefix) for name in names):
            neck = None
            notes.append(f'{checkpoint}: has no pyramid, which is left out')
        elif neck is not None:
            load_pretrained(neck, checkpoint, prefix)
    model = Looked(backbone.eval(), neck, build_preprocessor(parts.preprocessor))
    return model, notes


@torch.no_grad()
def _gives_maps(backbone: HiViT, neck: nn.Module) -> bool:
    maps = tuple(
        torch.zeros(1, channels, PROBE // stride, PROBE // stride)
        for channels, stride in zip(backbone.out_channels, backbone.strides, strict=True)
    )
    return any(x.ndim == 4 for x in neck(maps))
