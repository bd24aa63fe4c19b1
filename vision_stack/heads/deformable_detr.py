"""Deformable DETR's decoder (Zhu et al. 2021), with iterative box refinement and in two stages (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, register
from vision_stack.heads.boxes import precise
from vision_stack.heads.detr import (
    DETRHead,
    DETRHeadConfig,
    Memory,
    box_mlp,
    image_sizes_of,
    proposal_logits,
    refined,
    start_at_prior,
    take,
)
from vision_stack.layers.deformable import DeformableDecoderLayer, on_each_map
from vision_stack.layers.position_encoding import sine_encoding
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec, Target

_Encoder = tuple[Tensor, Tensor] | tuple[()]  # logits and boxes of proposals, while training
SMALL = -2.0  # logit of the sides of the first boxes that queries without a size predict


@register("head", "deformable_detr")
@dataclass(frozen=True, kw_only=True)
class DeformableDETRHeadConfig(DETRHeadConfig):
    """Queries read a few points of each map around their box. The defaults are the paper's best model."""

    num_points: Count = 4  # that a head of a query reads of each map
    with_box_refine: bool = True  # each layer refines the box of the one before it
    two_stage: bool = True  # queries start from the encoder's best proposals, not from learnt ones

    def check(self) -> None:
        super().check()
        if self.two_stage and not self.with_box_refine:
            raise ConfigError("two_stage: needs with_box_refine; set head.with_box_refine=true")

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> DeformableDETRHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser."""
        return DeformableDETRHead(self, in_specs, num_classes)


class DeformableDETRHead(DETRHead):
    """Decoder with deformable cross-attention; predicts after each layer.

    Differs from paper: none with neck=deformable_encoder. The published models' classifier of proposals has an output
    per class, of which only the first is used; here it has one.
    """

    query_layers: ClassVar[tuple[str, ...]] = ("query_embed.",)

    def __init__(self, config: DeformableDETRHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim
        self.with_box_refine = config.with_box_refine
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                dim, config.num_heads, self.num_levels, config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.num_decoder_layers)
        )
        # Without refinement the layers share theirs.
        predictors = config.num_decoder_layers if config.with_box_refine else 1
        self.class_embed = nn.ModuleList(start_at_prior(nn.Linear(dim, num_classes)) for _ in range(predictors))
        learnt_points = not config.two_stage  # without a size, unlike proposals and the boxes of earlier layers
        self.bbox_embed = nn.ModuleList(
            box_mlp(dim, SMALL if learnt_points and number == 0 else 0.0) for number in range(predictors)
        )
        self.proposals = _Proposals(dim, config.num_queries) if config.two_stage else None
        if self.proposals is None:
            self.query_embed = nn.Embedding(config.num_queries, 2 * dim)  # position and content
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> BoxOutputs:
        """Maps of `in_specs` -> class logits and boxes; while training also those of the proposals."""
        memory = self.memory(features)
        encoder: _Encoder = ()
        if self.proposals is None:
            position, x = self.query_embed.weight.expand(memory.tokens.shape[0], -1, -1).chunk(2, dim=2)
            reference = precise(self.reference_points(position)).sigmoid()
        else:
            reference, position, x, encoder = self.proposals(memory)
        logits, boxes, hidden = [], [], []
        for number, layer in enumerate(self.layers):
            places = on_each_map(reference, memory.padding, self.num_levels)
            x = layer(x, position, memory.tokens, memory.shapes, places, memory.padding)
            hidden.append(x)
            predictor = number if self.with_box_refine else 0
            logits.append(self.class_embed[predictor](x))
            boxes.append(refined(precise(self.bbox_embed[predictor](x)), reference))
            if self.with_box_refine:
                reference = boxes[-1].detach()
        all_logits, all_boxes = torch.stack(logits), torch.stack(boxes)
        outputs = BoxOutputs(
            all_logits[-1], all_boxes[-1], all_logits[:-1], all_boxes[:-1], image_sizes_of(features), *encoder
        )
        return outputs._replace(masks=self.mask_factors(hidden, memory, features))


class _Proposals(nn.Module):
    """The first stage (Sec. 4.2, A.4): every cell is scored, the best give the queries and their first boxes."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.output = nn.Linear(dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.objectness = start_at_prior(nn.Linear(dim, 1))
        self.bbox_embed = box_mlp(dim)
        self.query = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)
        for linear in (self.output, self.query):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor, _Encoder]:
        """Boxes [B, Q, 4], positions and content [B, Q, C] of the queries; while training also the logits [B, S, 1] and
        boxes [B, S, 4] of all proposals. Q is less than `num_queries` where there are fewer cells."""
        anchors, usable = proposal_logits(memory)
        x = self.output_norm(self.output(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        objectness = self.objectness(x)
        chosen = objectness[..., 0].topk(min(self.num_queries, x.shape[1])).indices
        anchors = anchors.expand(x.shape[0], -1, -1)
        encoder: _Encoder = ()
        if self.training:  # all of them have a loss
            logits = precise(self.bbox_embed(x)) + anchors
            encoder = (objectness, logits.sigmoid())
            logits = take(logits, chosen)
        else:
            logits = precise(self.bbox_embed(take(x, chosen))) + take(anchors, chosen)
        reference = logits.detach().sigmoid()
        encoded = sine_encoding(reference, x.shape[2] // 2).flatten(2).to(x.dtype)
        position, content = self.query_norm(self.query(encoded)).chunk(2, dim=2)
        return reference, position, content, encoder
