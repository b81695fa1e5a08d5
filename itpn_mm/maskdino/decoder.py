"""The decoder (MaskDINO, Section 3.1): DINO's, on tokens of all levels."""

from collections.abc import Callable

from mmdet.models.layers import (
    MLP,
    DeformableDetrTransformerDecoderLayer,
    coordinate_to_encoding,
    inverse_sigmoid,
)
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from itpn_mm.layers.arguments import check_counts, check_sizes

from .layers import init_layers
from .precision import single_precision
from .tokens import LevelTokens

EPS = 1e-5  # of the inverse of the sigmoid


class MaskDINODecoder(BaseModule):
    """Refines queries: their content by attention, their boxes by what the content says.

    Runs in single precision, also under automatic mixed precision.

    Args:
        embed_dims: Channels C of queries and tokens.
        num_levels: Levels of tokens.
        num_layers: Layers.
        num_heads: Heads of attention.
        num_points: Points that a head samples on each level.
        feedforward_channels: Hidden channels of the MLPs.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_levels: int = 3,
        num_layers: int = 9,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 2048,
    ) -> None:
        super().__init__()
        check_sizes(
            num_heads=num_heads,
            num_points=num_points,
            feedforward_channels=feedforward_channels,
        )
        check_counts(num_layers=num_layers)
        self.embed_dims = embed_dims
        self.num_levels = num_levels
        attention = dict(embed_dims=embed_dims, num_heads=num_heads, dropout=0.0, batch_first=True)
        self.layers = ModuleList(
            DeformableDetrTransformerDecoderLayer(
                self_attn_cfg=attention,
                cross_attn_cfg=attention | dict(num_levels=num_levels, num_points=num_points),
                ffn_cfg=dict(
                    embed_dims=embed_dims,
                    feedforward_channels=feedforward_channels,
                    ffn_drop=0.0,
                ),
            )
            for _ in range(num_layers)
        )
        self.ref_point_head = MLP(2 * embed_dims, embed_dims, embed_dims, num_layers=2)
        self.norm = nn.LayerNorm(embed_dims)

    def init_weights(self) -> None:
        """Initialise as the authors do."""
        super().init_weights()
        for layer in self.ref_point_head.layers:
            nn.init.xavier_uniform_(layer.weight)
        init_layers(self.layers)

    def forward(
        self,
        content: Tensor,
        box_logits: Tensor,
        memory: LevelTokens,
        box_head: Callable[[Tensor], Tensor],
        blocked: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run all layers.

        Args:
            content: (B, T, C), of T queries.
            box_logits: (B, T, 4), boxes before the sigmoid: centre and size, fractions of the
                image.
            memory: The tokens that queries look at.
            box_head: What reads a change of the box off the content.
            blocked: (T, T), true where the query of a row must not see that of a column.

        Returns:
            Normalised content (B, T, C) and boxes (B, T, 4) after each layer. A box has gradients
            from the layer itself and the one before ("look forward twice").
        """
        inputs = memory.attention_inputs()
        reference = earlier = box_logits.float().sigmoid()
        contents, boxes = [], []
        with single_precision(content.device):
            for layer in self.layers:
                content = layer(
                    content.float(),
                    query_pos=self.ref_point_head(self.encode(reference)),
                    value=memory.tokens,
                    self_attn_mask=blocked,
                    reference_points=memory.boxes_on_levels(reference),
                    **inputs,
                )
                contents.append(self.norm(content))
                boxes.append((box_head(contents[-1]) + inverse_sigmoid(earlier, EPS)).sigmoid())
                earlier = (box_head(content) + inverse_sigmoid(reference, EPS)).sigmoid()
                reference = earlier.detach()
        return contents, boxes

    def encode(self, boxes: Tensor) -> Tensor:
        """(B, T, 4) -> (B, T, 2 C): sine codes of y, x, width and height."""
        return coordinate_to_encoding(boxes, num_feats=self.embed_dims // 2)
