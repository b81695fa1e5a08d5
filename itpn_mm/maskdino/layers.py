"""What encoder and decoder share."""

from mmcv.ops import MultiScaleDeformableAttention
from torch import nn


def init_layers(layers: nn.Module) -> None:
    """Xavier for all matrices; then the offsets of deformable attention, a star of directions."""
    for parameter in layers.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for module in layers.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.init_weights()
