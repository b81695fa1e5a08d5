"""From the map of the last stage to one vector an image, as the released classifiers do it."""

from collections.abc import Sequence

from torch import Tensor, nn

from itpn_mm.checkpoint.pretrained import PretrainedModule
from itpn_mm.layers.arguments import check_flags, check_positive, check_sizes
from itpn_mm.registry import MODELS


@MODELS.register_module()
class GlobalAveragePoolNorm(PretrainedModule):
    """Mean over the positions of the last map with a LayerNorm after or before it.

    The authors' classifiers end with a mean and a LayerNorm (their ``fc_norm``, here ``norm``).
    Fast-iTPN can also be built with ``use_mean_pooling=False``, which is a mean too, with the
    LayerNorm on each position before it (their ``norm``, here ``pre_norm``).

    Args:
        in_channels: Channels C of the backbone's last map, the ``embed_dims`` of a HiViT.
        gap_before_norm: Whether the mean comes first.
        norm_eps: Epsilon of the LayerNorm.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix=...)`` or mmengine initialisers.

    Raises:
        ValueError: ``in_channels`` is no size, or a map arrives that does not have as many.
    """

    checkpoint_prefix = 'neck.'

    def __init__(
        self,
        in_channels: int,
        gap_before_norm: bool = True,
        norm_eps: float = 1e-6,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_sizes(in_channels=in_channels)
        check_positive(norm_eps=norm_eps)
        check_flags(gap_before_norm=gap_before_norm)
        self.in_channels = in_channels
        self.gap_before_norm = gap_before_norm
        norm = nn.LayerNorm(in_channels, eps=norm_eps)
        self.norm, self.pre_norm = (norm, None) if gap_before_norm else (None, norm)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor]:
        """Maps of a backbone, the last of them (B, C, H, W) -> a tuple of one tensor (B, C)."""
        x = inputs[-1]
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f'`in_channels` of the neck is {self.in_channels}, but the last map of the '
                f'backbone is {tuple(x.shape)}: set `neck.in_channels` to its channels'
            )
        if self.gap_before_norm:
            return (self.norm(x.mean(dim=(2, 3))),)
        return (self.pre_norm(x.flatten(2).transpose(1, 2)).mean(dim=1),)
