"""RT-DETR's decoder (Zhao et al. 2023): queries start as the encoder's best cells (Sec. 4.3); denoising in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from vision_stack.config import Fraction, NonNegative, Range, register
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
from vision_stack.layers.conv import conv_norm_act
from vision_stack.layers.deformable import DeformableDecoderLayer, on_each_map
from vision_stack.layers.mlp import MLP
from vision_stack.losses.box_criterion import BoxCriterionConfig
from vision_stack.losses.box_matcher import box_objects
from vision_stack.losses.denoising import NoisedQueries, attention_between, noised_queries
from vision_stack.outputs import BoxOutputs
from vision_stack.structures import Features, FeatureSpec, Target


def _varifocal() -> BoxCriterionConfig:
    return BoxCriterionConfig(class_loss="varifocal", class_weight=1.0)


@register("head", "rt_detr")
@dataclass(frozen=True, kw_only=True)
class RTDETRHeadConfig(DETRHeadConfig):
    """The defaults are those of the published RT-DETR-R50 and R101."""

    dropout: Fraction = 0.0
    loss: BoxCriterionConfig = field(default_factory=_varifocal)
    num_denoising: Annotated[int, Range(0, 1000)] = 100  # about how many noised objects an image has in training
    label_noise_ratio: Fraction = 0.5  # twice the share of them that get a random class
    box_noise_scale: NonNegative = 1.0  # how far their corners are moved, in halves of a side

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> RTDETRHead:
        """Raises ConfigError unless there is a map at stride 8 or coarser."""
        return RTDETRHead(self, in_specs, num_classes)


class RTDETRHead(DETRHead):
    """Decoder with deformable cross-attention; each layer refines the boxes of the one before it.

    Differs from paper: none with neck=hybrid_encoder and images of one size. Where a batch is padded, the decoder reads
    no padding, and boxes are shares of their own image.
    """

    class_layers: ClassVar[tuple[str, ...]] = ("class_embed.", "encoder_class.", "denoising_class_embed.")

    def __init__(self, config: RTDETRHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim
        self.config = config
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(
                dim, config.num_heads, self.num_levels, config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.num_decoder_layers)
        )
        self.class_embed = nn.ModuleList(start_at_prior(nn.Linear(dim, num_classes)) for _ in self.layers)
        self.bbox_embed = nn.ModuleList(box_mlp(dim) for _ in self.layers)
        self.query_position = MLP(4, 2 * dim, dim, num_layers=2)
        self.encoder_output = nn.Linear(dim, dim)
        self.encoder_norm = nn.LayerNorm(dim)
        self.encoder_class = start_at_prior(nn.Linear(dim, num_classes))
        self.encoder_bbox = box_mlp(dim)
        for linear in (self.encoder_output, *self.query_position.layers):
            nn.init.xavier_uniform_(linear.weight)
        # Only used in training; the last row is for images with fewer objects than others, and stays zero.
        self.denoising_class_embed = (
            nn.Embedding(num_classes + 1, dim, padding_idx=num_classes) if config.num_denoising else None
        )

    @staticmethod
    def projection(in_channels: int, dim: int) -> nn.Module:
        return conv_norm_act(in_channels, dim, 1)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> BoxOutputs:
        """Maps of `in_specs` -> class logits and boxes; while training also those of the proposals that were taken, and
        of noised objects."""
        memory, image_sizes = self.memory(features), image_sizes_of(features)
        x, encoder_logits, encoder_boxes = self._best_cells(memory)
        queries = x.shape[1]
        noised = self._noised(targets, image_sizes) if self.training and targets is not None else None
        x, reference, attend = x.detach(), encoder_boxes.detach(), None
        if self.denoising_class_embed is not None and noised is not None:
            x = torch.cat([self.denoising_class_embed(noised.labels), x], dim=1)
            reference = torch.cat([noised.boxes, reference], dim=1)
            attend = attention_between(noised, queries)
        logits, boxes = self._decode(x, reference, memory, attend)
        plain_logits, plain_boxes = logits[:, :, -queries:], boxes[:, :, -queries:]
        outputs = BoxOutputs(plain_logits[-1], plain_boxes[-1], plain_logits[:-1], plain_boxes[:-1], image_sizes)
        if self.training:
            outputs = outputs._replace(encoder_logits=encoder_logits, encoder_boxes=encoder_boxes)
        if noised is not None:
            noised_part = {"denoising_logits": logits[:, :, :-queries], "denoising_boxes": boxes[:, :, :-queries]}
            outputs = outputs._replace(**noised_part)
        return outputs

    def _best_cells(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, Q, C], class logits [B, Q, K] and boxes [B, Q, 4] of the cells that score best. Q is less than
        `num_queries` where there are fewer cells."""
        anchors, usable = proposal_logits(memory)
        x = self.encoder_norm(self.encoder_output(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.encoder_class(x)
        chosen = logits.amax(2).topk(min(self.max_objects, x.shape[1])).indices
        x = take(x, chosen)
        boxes = (precise(self.encoder_bbox(x)) + take(anchors.expand(x.shape[0], -1, -1), chosen)).sigmoid()
        return x, take(logits, chosen), boxes

    def _noised(self, targets: Sequence[Target], image_sizes: Tensor) -> NoisedQueries | None:
        """None without denoising."""
        config = self.config
        if not config.num_denoising:
            return None
        return noised_queries(
            box_objects(targets, image_sizes, image_sizes.dtype),
            self.num_classes,
            num_denoising=config.num_denoising,
            label_noise=config.label_noise_ratio,
            box_noise=config.box_noise_scale,
        )

    def _decode(self, x: Tensor, reference: Tensor, memory: Memory, attend: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries [B, Q, C] and their first boxes [B, Q, 4] -> logits [L, B, Q, K] and boxes [L, B, Q, 4].

        The boxes of a layer have gradients for it and for the layer before it (DINO, Sec. 3.5).
        """
        logits, boxes = [], []
        before = reference
        for layer, class_embed, bbox_embed in zip(self.layers, self.class_embed, self.bbox_embed, strict=True):
            places = on_each_map(reference, memory.padding, self.num_levels)
            position = self.query_position(reference.to(x.dtype))
            x = layer(x, position, memory.tokens, memory.shapes, places, memory.padding, attend)
            delta = precise(bbox_embed(x))
            logits.append(class_embed(x))
            boxes.append(refined(delta, before))
            before = refined(delta, reference)  # the same boxes, but no gradient goes further than one layer back
            reference = before.detach()
        return torch.stack(logits), torch.stack(boxes)
