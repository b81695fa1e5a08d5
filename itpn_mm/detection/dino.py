"""DINO with the position encoding of queries that released weights were trained with.

The releases of mmdet 3 disagree on it: onedl-mmdetection encodes a coordinate in C features, all
others (the authors, mmdet of open-mmlab) in C / 2, and their files do not load there.
"""

from mmdet.models import DINO as MMDetDINO
from mmdet.models.layers import MLP
from torch import Tensor

from itpn_mm.registry import MODELS

COORDINATES = 4  # of a box: centre y and x, width, height


class QueryPositionHead(MLP):
    """Sine encoding of reference boxes -> position embedding of their queries.

    A coordinate has C / 2 features, sines and cosines of C / 4 frequencies in geometric progression
    (DINO, Section 3; as in DAB-DETR). From an encoding with k times as many, every k-th frequency
    is taken, which are the same ones.

    Args:
        embed_dims: Channels C of queries.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__(2 * embed_dims, embed_dims, embed_dims, num_layers=2)
        self.frequencies = embed_dims // 4

    def forward(self, x: Tensor) -> Tensor:
        """(B, queries, 4 F), F features of a coordinate, -> (B, queries, C).

        Raises:
            ValueError: F / 2 is not a multiple of C / 4.
        """
        found, odd = divmod(x.shape[-1], 2 * COORDINATES)
        if odd or found < self.frequencies or found % self.frequencies:
            raise ValueError(
                f'`embed_dims` is {4 * self.frequencies}, which needs {self.frequencies} '
                f'frequencies for a coordinate, but this mmdet encodes {found}; take 256, or a '
                f'power of two below'
            )
        step = found // self.frequencies
        pairs = x.unflatten(-1, (COORDINATES, found, 2))
        return super().forward(pairs[..., ::step, :].flatten(-3))


@MODELS.register_module()
class DINO(MMDetDINO):
    """mmdet's DINO, whose released weights load on every stack, of any supported width.

    Takes the arguments of mmdet's.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.ref_point_head = QueryPositionHead(self.embed_dims)
