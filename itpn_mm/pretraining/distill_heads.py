"""Heads that predict the features of a frozen teacher, such as CLIP (paper, Section 3.3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from itpn_mm.layers import AttentionBlock, RelativePositionBias, TokenGrid
from itpn_mm.layers.arguments import check_positive, check_sizes, is_number
from itpn_mm.layers.linear import init_linear
from itpn_mm.registry import MODELS

POSITIONS = ('all', 'masked')


def smooth_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Mean smooth L1 (beta 1) over tokens and channels; for iTPN."""
    return F.smooth_l1_loss(pred, target)


def cosine(pred: Tensor, target: Tensor) -> Tensor:
    """One minus the mean cosine similarity of the tokens; for Fast-iTPN."""
    return 1 - F.cosine_similarity(pred, target, dim=-1).mean()


LOSSES = {'smooth_l1': smooth_l1, 'cosine': cosine}


@MODELS.register_module()
class CLIPDistillHead(BaseModule):
    """Linear prediction of the teacher's tokens.

    Args:
        in_channels: Channels D of the tokens read.
        target_dims: Channels of the teacher's tokens.
        loss: ``'smooth_l1'`` (iTPN) or ``'cosine'`` (Fast-iTPN).
        positions: Patches that count: ``'all'``, as released, or the ``'masked'`` ones.
        loss_weight: Weight of the loss.

    Raises:
        ValueError: Unknown ``loss`` or ``positions``.
    """

    loss_name = 'loss_distill'

    def __init__(
        self,
        in_channels: int = 512,
        target_dims: int = 512,
        loss: str = 'smooth_l1',
        positions: str = 'all',
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        for name, value, known in (
            ('loss', loss, tuple(LOSSES)),
            ('positions', positions, POSITIONS),
        ):
            if value not in known:
                raise ValueError(
                    f'`{name}` of {type(self).__name__} must be one of {known}, but got {value!r}'
                )
        check_sizes(in_channels=in_channels, target_dims=target_dims)
        check_positive(loss_weight=loss_weight)
        self.in_channels, self.target_dims = in_channels, target_dims
        self.loss_type, self.positions, self.loss_weight = loss, positions, loss_weight
        self.pred = nn.Linear(in_channels, target_dims)
        self.apply(init_linear)

    def forward(self, x: Tensor, tokens: TokenGrid) -> Tensor:
        """Predict the teacher's tokens: (B, L, D) -> (B, L, T)."""
        return self.pred(x)

    def loss(self, x: Tensor, tokens: TokenGrid, mask: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compare with the teacher.

        Args:
            x: Tokens (B, L, D).
            tokens: Where they lie.
            mask: Masked patches (B, L), bool.
            target: The teacher's tokens (B, L, T).
        """
        pred, target = self(x, tokens).float(), target.float()
        if self.positions == 'masked':
            pred, target = pred[mask], target[mask]
        return {self.loss_name: self.loss_weight * LOSSES[self.loss_type](pred, target)}


@MODELS.register_module()
class AuxiliaryHead(CLIPDistillHead):
    """The released iTPN's second branch: blocks of its own on tokens from within stage 3.

    Args:
        in_channels: Width E of stage 3.
        num_heads: Number of heads.
        mlp_ratio: MLP ratio of the blocks.
        num_blocks: Number of blocks.
        tap: Which block of stage 3 is read, as a share of its depth: after block ``int(tap *
            depth)``, counted from 0.
        grid: Grid (h, w) of the relative position tables of the blocks; ``None`` for no tables.
        layer_scale_init_value: Initial value of layer scale; ``None`` for no layer scale.
        drop_path_rates: Stochastic depth of each block; :class:`iTPNDistill` gives those of the
            backbone's blocks at the same depth.
        norm_eps: Epsilon of the last LayerNorm; those of the blocks have 1e-5, as released.
        **kwargs: All other arguments of :class:`CLIPDistillHead`.

    Raises:
        ValueError: ``tap`` is not in [0, 1), or an argument of :class:`CLIPDistillHead` is wrong.
    """

    loss_name = 'loss_aux'

    def __init__(
        self,
        in_channels: int = 512,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_blocks: int = 2,
        tap: float = 0.75,
        grid: tuple[int, int] | None = None,
        layer_scale_init_value: float | None = None,
        drop_path_rates: Sequence[float] = (0.0, 0.0),
        norm_eps: float = 1e-6,
        **kwargs,
    ) -> None:
        super().__init__(in_channels, **kwargs)
        check_sizes(num_heads=num_heads, num_blocks=num_blocks)
        check_positive(mlp_ratio=mlp_ratio, norm_eps=norm_eps)
        if in_channels % num_heads:
            raise ValueError(
                f'`num_heads` of AuxiliaryHead must divide in_channels={in_channels}, but got '
                f'{num_heads}'
            )
        if not is_number(tap) or not 0 <= tap < 1:
            raise ValueError(f'`tap` of AuxiliaryHead must be in [0, 1), but got {tap!r}')
        if len(drop_path_rates) != num_blocks:
            raise ValueError(
                f'`drop_path_rates` of AuxiliaryHead must be {num_blocks} numbers, one for each of '
                f'its blocks, but got {drop_path_rates!r}'
            )
        self.tap = tap
        self.blocks = nn.ModuleList(
            AttentionBlock(
                in_channels,
                num_heads,
                mlp_ratio,
                rel_pos=None if grid is None else RelativePositionBias(tuple(grid), num_heads),
                layer_scale_init_value=layer_scale_init_value,
                drop_path_rate=rate,
                norm_eps=1e-5,
            )
            for _, rate in zip(range(num_blocks), drop_path_rates, strict=True)
        )
        self.norm = nn.LayerNorm(in_channels, norm_eps)
        self.apply(init_linear)

    def forward(self, x: Tensor, tokens: TokenGrid) -> Tensor:
        """Predict the teacher's tokens: (B, L, E) -> (B, L, T)."""
        for block in self.blocks:
            x = block(x, tokens)
        return self.pred(self.norm(x))
