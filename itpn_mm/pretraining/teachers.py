"""Where the feature targets come from."""

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from itpn_mm.layers.arguments import is_number
from itpn_mm.layers.migration import take_tokens
from itpn_mm.registry import MODELS


@MODELS.register_module()
class EMATeacher(ExponentialMovingAverage):
    """Exponential moving average of the online backbone (Section 3.4, option i).

    It is never trained, runs in evaluation mode, and is updated once per optimiser step by
    :class:`itpn_mm.engine.EMATeacherHook`, which also makes it equal to the backbone when training
    starts.

    Args:
        backbone: The online backbone; copied.
        momentum: Share of the old teacher kept in each update, as the paper counts it (mmengine
            counts 1 - momentum).
        context: What the teacher sees when it makes the features of some patches: ``'patches'``,
            those alone, or ``'image'``, all patches of the image.

    Raises:
        ValueError: ``momentum`` is not in (0, 1), or unknown ``context``.
    """

    def __init__(
        self, backbone: nn.Module, momentum: float = 0.996, context: str = 'patches'
    ) -> None:
        if context not in ('patches', 'image'):
            raise ValueError(
                f"`context` of EMATeacher must be 'patches' or 'image', but got {context!r}"
            )
        if not is_number(momentum) or not 0 < momentum < 1:
            raise ValueError(f'`momentum` of EMATeacher must be in (0, 1), but got {momentum!r}')
        super().__init__(backbone, momentum=1 - momentum)
        self.context, self._started = context, False

    @property
    def started(self) -> bool:
        """Whether the teacher was ever made equal to the backbone (read from the device until it
        was).
        """
        self._started = self._started or bool(self.steps > 0)
        return self._started

    def train(self, mode: bool = True) -> 'EMATeacher':
        """Stay in evaluation mode: targets know no stochastic depth."""
        return super().train(False)

    def update_parameters(self, model: nn.Module) -> None:
        """Average the parameters of the online backbone in; the first time, copy them."""
        # Sharding puts others in the place of those that mmengine collected when it was built.
        self.avg_parameters = dict(self.module.named_parameters())
        super().update_parameters(model)

    @torch.no_grad()
    def forward(self, images: Tensor, patches: Tensor) -> tuple[Tensor, ...]:
        """Stage outputs of the given patches, each with its own position.

        Args:
            images: Images (B, 3, H, W).
            patches: Indices (B, N) of patches.

        Returns:
            (B, N * k, k, C) of each stage, k = 4, 2, 1.
        """
        if not self.started:
            raise RuntimeError(
                "the EMA teacher was never started: add dict(type='itpn_mm.EMATeacherHook') to "
                '`custom_hooks`, '
                'or call `model.teacher.update_parameters(model.backbone)` yourself after every '
                'optimiser step'
            )
        if self.context == 'patches':
            return self.module.forward_stages(images, patches)
        p = self.module.patch_size
        num_patches = (images.shape[2] // p) * (images.shape[3] // p)
        everything = torch.arange(num_patches, device=images.device).expand(len(images), -1)
        stages = self.module.forward_stages(images, everything)
        return tuple(_take_patches(x, patches) for x in stages)


def _take_patches(x: Tensor, patches: Tensor) -> Tensor:
    """Of a stage of all patches (B, L * k, k, C) those at (B, N): (B, N * k, k, C)."""
    b, _, k, c = x.shape
    return take_tokens(x.view(b, -1, k * k * c), patches).view(b, -1, k, c)
