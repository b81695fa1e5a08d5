"""What of a model is exported, as a module from pictures to a tuple of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from itpn_mm.backbones import HiViT
from itpn_mm.necks import TransformerPyramidNeck

PARTS = ('backbone', 'features', 'classifier')


class ExportPart(nn.Module):
    """A part of a model with the normalisation of its data preprocessor before it.

    Args:
        model: Model of any OpenMMLab package.
        part: ``'backbone'``: its maps; ``'features'``: those of the neck on top of it;
            ``'classifier'``: the logits of an mmpretrain classifier, to which a softmax gives
            probabilities. ``None``: the classifier if it is one, else the features if there is a
            neck, else the backbone.

    Attributes:
        part: Which one it is.
        patch_size: Of the backbone.
        output_names: ``c4``, ``c8``, ``c16`` for the maps of a backbone by stride, ``p4`` and so on
            for those of a pyramid, ``logits``.
        color_order: ``'RGB'`` or ``'BGR'``, as the weights have been trained.

    Raises:
        ValueError: The model does not have the part, or it is none of ours.
    """

    def __init__(self, model: nn.Module, part: str | None = None) -> None:
        super().__init__()
        backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
        if not isinstance(backbone, HiViT):
            raise ValueError(
                'the backbone of the model must be an itpn_mm.HiViT or itpn_mm.FastiTPN to be '
                f'exported, but it is {_name(backbone)}'
            )
        kinds = dict(
            classifier=is_classifier(model),
            features=isinstance(neck, TransformerPyramidNeck),
            backbone=True,
        )
        self.part = part or next(kind for kind, is_there in kinds.items() if is_there)
        if self.part not in PARTS:
            raise ValueError(f'`part` must be one of {PARTS}, but got {part!r}')
        if not kinds[self.part]:
            needed = dict(
                classifier='an ImageClassifier of mmpretrain with a head',
                features='a model with an itpn_mm.TransformerPyramidNeck',
            )[self.part]
            raise ValueError(
                f'`part={part!r}` is of {needed}, but the model is {_name(model)} with the neck '
                f'{_name(neck)}; it has {[kind for kind in PARTS if kinds[kind]]}'
            )
        self.patch_size = backbone.patch_size
        self.in_channels = backbone.patch_embed.proj.in_channels
        self.default_size = tuple(n * self.patch_size for n in backbone.grid)
        if self.part == 'classifier':
            self.model, self.output_names = model, ('logits',)
        elif self.part == 'features':
            self.model = nn.Sequential(backbone, neck)
            self.output_names = tuple(f'p{stride}' for stride in neck.out_strides)
        else:
            self.model, self.output_names = backbone, tuple(f'c{s}' for s in backbone.strides)
        preprocessor = getattr(model, 'data_preprocessor', None)
        self.color_order = 'RGB' if _swaps_channels(preprocessor) else 'BGR'
        for name, default in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name, None)
            value = torch.tensor(default) if value is None else value.detach().clone()
            self.register_buffer(name, value.float())
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pictures (B, 3, H, W), 0 to 255, -> maps (B, C, H / s, W / s), or logits (B, K)."""
        x = (images - self.mean) / self.std
        if self.part == 'classifier':
            return (self.model(x, mode='tensor'),)
        return tuple(self.model(x))

    def check_size(self, size: Sequence[int]) -> None:
        """See to it that the model takes pictures (height, width) as they are.

        Raises:
            ValueError: It would pad them, or they are too small for a level of the pyramid.
        """
        patch = self.patch_size
        if any(n < patch or n % patch for n in size):
            raise ValueError(
                f'`size` must be multiples of {patch} pixels, the patches of the model, but got '
                f'{size[0]} x {size[1]}'
            )
        coarsest = max((int(n[1:]) for n in self.output_names if n[1:].isdigit()), default=patch)
        if min(size) < coarsest:
            raise ValueError(
                f'`size` must be at least {coarsest} pixels for the level {self.output_names[-1]}, '
                f'but got {size[0]} x {size[1]}'
            )

    def example(self, size: Sequence[int], batch: int = 2, seed: int = 0) -> Tensor:
        """Pictures of noise (batch, channels, height, width)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, self.in_channels, *size)
        return 255 * torch.rand(shape, generator=generator)


def is_classifier(model: nn.Module) -> bool:
    """Whether this is a classifier of mmpretrain, by what it can do (nothing is imported)."""
    num_classes = getattr(getattr(model, 'head', None), 'num_classes', None)
    return hasattr(model, 'extract_feat') and isinstance(num_classes, int)


def _swaps_channels(preprocessor: nn.Module | None) -> bool:
    """Whether pictures, which the hosts read as BGR, become RGB."""
    names = ('to_rgb', '_channel_conversion', 'channel_conversion')  # mmpretrain, mmdet, mmseg
    return any(bool(getattr(preprocessor, name, False)) for name in names)


def _name(module: nn.Module | None) -> str:
    return 'none' if module is None else type(module).__name__
