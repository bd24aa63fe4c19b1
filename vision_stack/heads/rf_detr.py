"""LW-DETR's decoder (Chen et al. 2024), which RF-DETR (Robinson et al. 2025) has, too: light, trained in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Fraction, Layers, register
from vision_stack.heads.boxes import precise
from vision_stack.heads.detr import (
    DETRHead,
    DETRHeadConfig,
    Memory,
    box_mlp,
    image_sizes_of,
    proposals,
    start_at_prior,
    take,
)
from vision_stack.layers.deformable import DeformableDecoderLayer, on_each_map
from vision_stack.layers.mlp import MLP
from vision_stack.layers.position_encoding import sine_encoding
from vision_stack.losses.box_criterion import BoxCriterionConfig
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec, Target


def _iou_aware() -> BoxCriterionConfig:
    return BoxCriterionConfig(class_loss="ia_bce", class_weight=1.0)


@register("head", "rf_detr")
@dataclass(frozen=True, kw_only=True)
class RFDETRHeadConfig(DETRHeadConfig):
    """The defaults are RF-DETR's small model; nano has 2 layers, medium and large have 4."""

    num_decoder_layers: Layers = 3
    num_points: Count = 2  # that a head of a query reads of each map
    cross_heads: Count = 16  # of the deformable attention
    ffn_dim: Count = 2048
    dropout: Fraction = 0.0
    num_groups: Count = 13  # of queries, in training; the first alone predicts
    loss: BoxCriterionConfig = field(default_factory=_iou_aware)

    def check(self) -> None:
        super().check()
        if self.hidden_dim % self.cross_heads:
            raise ConfigError(f"cross_heads: {self.cross_heads} does not divide hidden_dim ({self.hidden_dim})")

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> RFDETRHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser."""
        return RFDETRHead(self, in_specs, num_classes)


@register("head", "rf_detr_seg")
@dataclass(frozen=True, kw_only=True)
class RFDETRSegHeadConfig(RFDETRHeadConfig):
    """The defaults are RF-DETR-Seg's small model; nano has 4 layers, too, medium and large 5, the larger ones 6."""

    needs_masks: ClassVar[bool] = True
    num_queries: Count = 100
    num_decoder_layers: Layers = 4
    masks: bool | Literal["auto"] = True


class RFDETRHead(DETRHead):
    """Learnt queries at the best proposals (mixed query selection); every layer moves the same reference boxes.

    Sizes of boxes are predicted as factors of the reference's, places as shares of its sides. All layers share their
    predictors, and the positions of queries are computed once. In training there are several groups of queries, each
    with a selection of its own, which only see one another (Group DETR). Proposals have masks, too, if there are any.
    """

    query_layers: ClassVar[tuple[str, ...]] = ("query_feat.", "reference_embed.")

    def __init__(self, config: RFDETRHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim, self.num_queries, self.num_groups = config.hidden_dim, config.num_queries, config.num_groups
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                dim,
                config.num_heads,
                self.num_levels,
                config.num_points,
                config.ffn_dim,
                config.dropout,
                config.cross_heads,
            )
            for _ in range(config.num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_position = MLP(2 * dim, dim, dim, num_layers=2)
        self.query_feat = nn.Embedding(config.num_queries * config.num_groups, dim)
        self.reference_embed = nn.Embedding(config.num_queries * config.num_groups, 4)
        nn.init.zeros_(self.reference_embed.weight)
        self.class_embed = start_at_prior(nn.Linear(dim, num_classes))
        self.bbox_embed = box_mlp(dim)
        self.selections = nn.ModuleList(Selection(dim, num_classes) for _ in range(config.num_groups))

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> BoxOutputs:
        """Maps of `in_specs` -> class logits and boxes; while training also those of the chosen proposals."""
        memory = self.memory(features)
        groups = self.num_groups if self.training else 1
        logits, chosen, proposed = self._proposed(memory, groups)
        count = chosen.shape[1] // groups
        reference = moved(chosen.detach(), precise(self._of_groups(self.reference_embed, groups, count)))
        places = on_each_map(reference, memory.padding, self.num_levels)
        encoded = (
            sine_encoding(places[:, :, 0, [1, 0, 2, 3]], memory.tokens.shape[2] // 2).flatten(2).to(memory.tokens.dtype)
        )
        position = self.query_position(encoded)
        x = self._of_groups(self.query_feat, groups, count).expand(memory.tokens.shape[0], -1, -1)
        hidden = []
        for layer in self.layers:
            x = layer(x, position, memory.tokens, memory.shapes, places, memory.padding, num_groups=groups)
            hidden.append(self.decoder_norm(x))
        stacked = torch.stack(hidden)
        all_logits, all_boxes = self.class_embed(stacked), moved(reference, precise(self.bbox_embed(stacked)))
        encoder = (logits, chosen) if self.training else ()
        outputs = BoxOutputs(
            all_logits[-1], all_boxes[-1], all_logits[:-1], all_boxes[:-1], image_sizes_of(features), *encoder
        )
        masks = self.mask_factors(hidden, memory, features, proposed if self.training else None)
        return outputs._replace(masks=masks)

    def compute_loss(self, outputs: BoxOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """See `DETRHead.compute_loss`; outputs of training are of several groups."""
        return self.criterion(outputs, targets, 1 if outputs.encoder_logits is None else self.num_groups)

    def _proposed(self, memory: Memory, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [B, G * Q, K], boxes and tokens of the proposals that each group chooses."""
        boxes, usable = proposals(memory)
        tokens = memory.tokens.masked_fill(~usable[..., None], 0.0)
        boxes = boxes.masked_fill(~usable[..., None], 0.0).expand(tokens.shape[0], -1, -1)
        found = [select(tokens, boxes, usable, self.num_queries) for select in self.selections[:groups]]
        logits, chosen, proposed = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return logits, chosen, proposed

    def _of_groups(self, table: nn.Embedding, groups: int, count: int) -> Tensor:
        """The first `count` rows of the first groups of queries, [1, G * count, D]."""
        return table.weight.unflatten(0, (self.num_groups, -1))[:groups, :count].flatten(0, 1)[None]


class Selection(nn.Module):
    """Scores all cells and moves the best, of one group of queries."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.class_embed = start_at_prior(nn.Linear(dim, num_classes))
        self.bbox_embed = box_mlp(dim)

    def forward(self, tokens: Tensor, boxes: Tensor, usable: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B, S, C] and their proposals [B, S, 4] -> of the Q best logits, boxes and tokens, [B, Q, ...]."""
        x = self.output_norm(self.output(tokens))
        logits = self.class_embed(x)
        scores = logits.amax(2).masked_fill(~usable, -torch.inf)
        symbolic = isinstance(x.shape[1], torch.SymInt)  # exported; a minimum of symbols would fix the batch
        best = scores.topk(count if symbolic else min(count, x.shape[1])).indices
        chosen = take(x, best)
        return take(logits, best), moved(take(boxes, best), precise(self.bbox_embed(chosen))), chosen


def moved(reference: Tensor, delta: Tensor) -> Tensor:
    """Boxes (cx, cy, w, h) moved by shares of their sides, which grow by factors exp(delta): [..., 4]."""
    center, side = reference.split(2, dim=-1)
    shift, growth = delta.split(2, dim=-1)
    return torch.cat([center + shift * side, side * growth.exp()], dim=-1)
