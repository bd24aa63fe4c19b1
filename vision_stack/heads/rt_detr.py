"""RT-DETR's decoder (Zhao et al. 2023), which starts from the encoder's best cells (Sec. 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vision_stack.config import Count, register
from vision_stack.heads.boxes import precise
from vision_stack.heads.detr import Memory, box_mlp, image_sizes_of, refined, start_at_prior
from vision_stack.heads.query_selection import Queries, QuerySelectionConfig, QuerySelectionHead
from vision_stack.layers.deformable import DeformableDecoderLayer, on_each_map
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec, Target


@register("head", "rt_detr")
@dataclass(frozen=True, kw_only=True)
class RTDETRHeadConfig(QuerySelectionConfig):
    """The defaults are those of the published RT-DETR-R50 and R101."""

    num_points: Count = 4  # that a head of a query reads of each map

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> RTDETRHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser."""
        return RTDETRHead(self, in_specs, num_classes)


class RTDETRHead(QuerySelectionHead):
    """Decoder with deformable cross-attention; each layer refines the boxes of the one before it.

    Differs from paper: none with neck=hybrid_encoder and images of one size. Where a batch is padded, the decoder reads
    no padding, and boxes are shares of their own image.
    """

    def __init__(self, config: RTDETRHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                dim, config.num_heads, self.num_levels, config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.num_decoder_layers)
        )
        self.class_embed = nn.ModuleList(start_at_prior(nn.Linear(dim, num_classes)) for _ in self.layers)
        self.bbox_embed = nn.ModuleList(box_mlp(dim) for _ in self.layers)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> BoxOutputs:
        """Maps of `in_specs` -> class logits and boxes; while training also those of the proposals that were taken, and
        of noised objects."""
        memory, image_sizes = self.memory(features), image_sizes_of(features)
        queries = self.queries(memory, image_sizes, targets)
        logits, boxes, hidden = self._decode(queries, memory)
        masks = self.mask_factors([x[:, queries.num_noised :] for x in hidden], memory, features)
        return self.outputs(queries, logits, boxes, image_sizes)._replace(masks=masks)

    def _decode(self, queries: Queries, memory: Memory) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits [L, B, D + Q, K] and boxes [L, B, D + Q, 4] of all layers, and the queries [B, D + Q, C] after each.

        The boxes of a layer have gradients for it and for the layer before it (DINO, Sec. 3.5).
        """
        logits, boxes, hidden = [], [], []
        x, reference = queries.x, queries.reference
        before = reference
        for layer, class_embed, bbox_embed in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            places = on_each_map(reference, memory.padding, self.num_levels)
            position = self.query_position(reference.to(x.dtype))
            x = layer(x, position, memory.tokens, memory.shapes, places, memory.padding, queries.attend)
            hidden.append(x)
            delta = precise(bbox_embed(x))
            logits.append(class_embed(x))
            boxes.append(refined(delta, before))
            before = refined(delta, reference)  # the same boxes, but no gradient goes further than one layer back
            reference = before.detach()
        return torch.stack(logits), torch.stack(boxes), hidden
