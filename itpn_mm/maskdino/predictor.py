"""From tokens to classes, boxes and masks of queries (MaskDINO, Sections 3.1 to 3.5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from mmdet.models.layers import MLP, inverse_sigmoid
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from itpn_mm.layers.arguments import check_flags, check_sizes

from .boxes import BOX_INITS, boxes_from_masks
from .decoder import EPS, MaskDINODecoder
from .denoising import NoisyQueries, QueryDenoiser
from .precision import single_precision
from .targets import Target
from .tokens import LevelTokens

# A proposal is valid as long as its centre and size are within this range.
_PROPOSAL_RANGE = (0.01, 0.99)


@dataclass(frozen=True)
class Predictions:
    """S sets of predictions of T queries.

    Args:
        cls_logits: (S, B, T, K), or K + 1 with one for "no object".
        boxes: (S, B, T, 4), centre and size as fractions of the image.
        mask_embeds: (S, B, T, C); the logit of a mask at a pixel is the product of its embedding
            and that pixel's mask features.
    """

    cls_logits: Tensor
    boxes: Tensor
    mask_embeds: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """One set after the other."""
        return zip(self.cls_logits, self.boxes, self.mask_embeds, strict=True)

    def __getitem__(self, part: object) -> 'Predictions':
        return Predictions(self.cls_logits[part], self.boxes[part], self.mask_embeds[part])


@dataclass(frozen=True)
class Outputs:
    """What the predictor says of a batch.

    Args:
        names: Of the sets: `''` the last layer, `'d0.'` the queries before the first layer, `'d1.'`
            the first layer and so on, and `'enc_'` what the selection said. Only `''` when not
            training.
        matching: The sets of predictions.
        mask_features: (B, C, H, W).
        ratios: (B, 2), see `itpn_mm.maskdino.padding`.
        denoising: Sets of the noisy queries, without `'enc_'`.
        noise: The noisy queries.
    """

    names: tuple[str, ...]
    matching: Predictions
    mask_features: Tensor
    ratios: Tensor | None = None
    denoising: Predictions | None = None
    noise: NoisyQueries | None = None


class MaskDINOPredictor(BaseModule):
    """Selects queries, has the decoder refine them, and reads classes, boxes and masks off them.

    One class head, one box head and one mask head serve all layers and the selection.

    Args:
        num_classes: Classes K.
        num_queries: Matching queries M.
        embed_dims: Channels of queries and tokens.
        mask_dims: Channels of mask features.
        no_object: The class head has a logit for "no object".
        two_stage: Queries are the tokens with the best classes, and not learned.
        learned_content: In two stages, take only boxes from the tokens.
        box_init: Where the boxes of two stages come from: `'no'` from tokens, else from the masks
            of the tokens, see :func:`itpn_mm.maskdino.boxes.boxes_from_masks`.
        proposal_sizes: Side of a token's box before it is refined, for each level, the finest
            first, as a fraction of the image; by default 0.05 and twice as much on each next one.
        double_norm: Normalise content twice before the heads, as released weights need it.
        decoder: Arguments of :class:`MaskDINODecoder`.
        denoising: Arguments of :class:`QueryDenoiser`; `None` for no denoising.
        init_cfg: Initialisation config.

    Raises:
        ValueError: An argument is out of range, or useless beside the others.
    """

    def __init__(
        self,
        num_classes: int,
        num_queries: int = 100,
        embed_dims: int = 256,
        mask_dims: int = 256,
        no_object: bool = False,
        two_stage: bool = False,
        learned_content: bool = False,
        box_init: str = 'no',
        proposal_sizes: Sequence[float] | None = None,
        double_norm: bool = False,
        decoder: dict | None = None,
        denoising: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_sizes(num_queries=num_queries)
        check_flags(two_stage=two_stage, learned_content=learned_content, double_norm=double_norm)
        if box_init not in BOX_INITS:
            raise ValueError(f'`box_init` must be one of {BOX_INITS}, got {box_init!r}')
        if not two_stage and (box_init != 'no' or learned_content or proposal_sizes):
            raise ValueError(
                '`box_init`, `learned_content` and `proposal_sizes` say how tokens become queries, '
                'which needs `two_stage=True`'
            )
        self.num_queries = num_queries
        self.no_object = no_object
        self.two_stage = two_stage
        self.box_init = box_init
        self.double_norm = double_norm
        self.decoder = MaskDINODecoder(embed_dims=embed_dims, **(decoder or {}))
        num_levels = self.decoder.num_levels
        if proposal_sizes is None:
            proposal_sizes = [0.05 * 2**level for level in range(num_levels)]
        if len(proposal_sizes) != num_levels:
            raise ValueError(
                f'`proposal_sizes` has {len(proposal_sizes)} numbers, but there are {num_levels} '
                'levels'
            )
        self.proposal_sizes = tuple(proposal_sizes)
        if two_stage:
            self.memory_trans_fc = nn.Linear(embed_dims, embed_dims)
            self.memory_trans_norm = nn.LayerNorm(embed_dims)
        else:
            self.query_boxes = nn.Embedding(num_queries, 4)
        if not two_stage or learned_content:
            self.query_content = nn.Embedding(num_queries, embed_dims)
        self.cls_head = nn.Linear(embed_dims, num_classes + no_object)
        self.box_head = MLP(embed_dims, embed_dims, 4, num_layers=3)
        self.mask_head = MLP(embed_dims, embed_dims, mask_dims, num_layers=3)
        self.denoiser = (
            None if denoising is None else QueryDenoiser(num_classes, embed_dims, **denoising)
        )

    def init_weights(self) -> None:
        """Boxes start unchanged; classes of a sigmoid start at a probability of 0.01."""
        super().init_weights()
        nn.init.zeros_(self.box_head.layers[-1].weight)
        nn.init.zeros_(self.box_head.layers[-1].bias)
        if not self.no_object:
            nn.init.constant_(self.cls_head.bias, bias_init_with_prob(0.01))

    def forward(
        self, memory: LevelTokens, mask_features: Tensor, targets: Sequence[Target] | None = None
    ) -> Outputs:
        """Predict.

        Args:
            memory: Tokens (B, N, C).
            mask_features: (B, mask_dims, H, W).
            targets: Of the images, for denoising; only in training.
        """
        with single_precision(mask_features.device):
            content, box_logits, selected = self._select(memory, mask_features)
        noise, noisy = None, 0
        if self.denoiser is not None and self.training and targets is not None:
            noise = self.denoiser(targets, self.num_queries)
            if noise is None:
                # the embedding takes part in every step, or distributed training would miss it
                content = content + 0 * self.denoiser.label_embed.weight.sum()
        if noise is not None:
            noisy = noise.content.shape[1]
            content = torch.cat((noise.content, content), 1)
            box_logits = torch.cat((noise.box_logits, box_logits), 1)
        blocked = None if noise is None else noise.blocked
        contents, boxes = self.decoder(content, box_logits, memory, self.box_head, blocked)
        if not self.training:
            last = self._predict(contents[-1:], boxes[-1:], self.double_norm)
            return Outputs(('',), last, mask_features, memory.ratios)
        start = self._predict([content], [box_logits.sigmoid()], True)
        layers = self._predict(contents, boxes, self.double_norm)
        names = ['', 'd0.', *(f'd{i}.' for i in range(1, len(contents)))]
        sets = [layers[-1:], start, layers[:-1]]
        matching = [part[:, :, noisy:] for part in sets]
        if selected is not None:
            names.append('enc_')
            matching.append(selected)
        return Outputs(
            tuple(names),
            _cat(matching),
            mask_features,
            memory.ratios,
            None if noise is None else _cat([part[:, :, :noisy] for part in sets]),
            noise,
        )

    def _predict(self, contents: list[Tensor], boxes: list[Tensor], norm: bool) -> Predictions:
        content = torch.stack(contents)
        if norm:
            content = self.decoder.norm(content)
        return Predictions(self.cls_head(content), torch.stack(boxes), self.mask_head(content))

    def _select(
        self, memory: LevelTokens, mask_features: Tensor
    ) -> tuple[Tensor, Tensor, Predictions | None]:
        """Content (B, M, C) and boxes (B, M, 4) of queries, and what tokens said of themselves."""
        batch = len(memory.tokens)
        if not self.two_stage:
            learned = (self.query_content.weight, self.query_boxes.weight)
            return *(values.expand(batch, -1, -1) for values in learned), None
        count = memory.tokens.shape[1]
        if count < self.num_queries:
            raise ValueError(
                f'`num_queries` is {self.num_queries}, but {memory.sizes} are only {count} tokens; '
                'use fewer queries or larger images'
            )
        proposals, valid = self.proposals(memory)
        tokens = memory.tokens.masked_fill(~valid[..., None], 0)
        tokens = self.memory_trans_norm(self.memory_trans_fc(tokens))
        scores = self.cls_head(tokens).max(-1).values
        if memory.padding is not None:
            scores = scores.masked_fill(memory.padding, -torch.inf)
        best = scores.topk(self.num_queries).indices[..., None]
        tokens = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
        proposals = proposals.expand(batch, -1, -1).gather(1, best.expand(-1, -1, 4))
        box_logits = self.box_head(tokens) + proposals
        selected = self._predict([tokens], [box_logits.sigmoid()], True)
        content, box_logits = tokens.detach(), box_logits.detach()
        if hasattr(self, 'query_content'):
            content = self.query_content.weight.expand(batch, -1, -1)
        if self.box_init != 'no':
            box_logits = self._boxes_of_masks(selected.mask_embeds[0], mask_features, memory.ratios)
        return content, box_logits, selected

    def proposals(self, memory: LevelTokens) -> tuple[Tensor, Tensor]:
        """A box around each token: logits (B or 1, N, 4), infinite where not valid (B or 1, N)."""
        counts = torch.tensor([h * w for h, w in memory.sizes], device=memory.tokens.device)
        sides = memory.tokens.new_tensor(self.proposal_sizes).repeat_interleave(counts)
        centres = memory.centres[None]
        if memory.ratios is not None:
            centres = centres / memory.ratios[:, None]
        sides = sides[None, :, None].expand(len(centres), -1, 2)
        boxes = torch.cat((centres, sides), -1)
        low, high = _PROPOSAL_RANGE
        valid = ((boxes > low) & (boxes < high)).all(-1)
        return boxes.logit().masked_fill(~valid[..., None], torch.inf), valid

    @torch.no_grad()
    def _boxes_of_masks(
        self, mask_embeds: Tensor, mask_features: Tensor, ratios: Tensor | None
    ) -> Tensor:
        """Logits (B, M, 4) of the boxes around masks (MaskDINO, "mask-enhanced anchor boxes")."""
        masks = predict_masks(mask_embeds, mask_features) > 0
        height, width = masks.shape[-2:]
        extent = torch.tensor([width, height], dtype=torch.float32, device=masks.device)
        if ratios is not None:
            extent = extent * ratios
        return inverse_sigmoid(boxes_from_masks(masks, self.box_init, extent), EPS)


def predict_masks(mask_embeds: Tensor, mask_features: Tensor) -> Tensor:
    """Embeddings (B, T, C) and mask features (B, C, H, W) -> logits (B, T, H, W)."""
    return torch.einsum('btc,bchw->bthw', mask_embeds, mask_features)


def _cat(sets: Sequence[Predictions]) -> Predictions:
    fields = ('cls_logits', 'boxes', 'mask_embeds')
    return Predictions(*(torch.cat([getattr(s, field) for s in sets]) for field in fields))
