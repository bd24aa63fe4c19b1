"""MaskFormer's transformer decoder and prediction heads (Cheng et al. 2021, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vision_stack.config import Count, Fraction, register
from vision_stack.heads.base import MaskHead, check_dims, find_mask_features, mask_projection, projection
from vision_stack.layers.mlp import MLP
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.layers.transformer import DetrDecoderLayer
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.structures import FeatureSpec, HeadConfig, MaskOutputs


@register("head", "maskformer")
@dataclass(frozen=True, kw_only=True)
class MaskFormerHeadConfig(HeadConfig):
    """Queries read the coarsest map; each gives class logits and an embedding that pixels multiply to its mask."""

    num_queries: Count = 100
    hidden_dim: Count = 256
    mask_dim: Count | None = None  # None: that of `mask_features`, or hidden_dim where the neck has no map of that name
    mask_positions: bool = False  # on the mask features, to tell apart objects that look the same
    num_decoder_layers: Count = 6
    num_heads: Count = 8
    ffn_dim: Count = 2048
    dropout: Fraction = 0.1
    deep_supervision: bool = True  # every decoder layer predicts and is trained, not the last alone
    loss: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)

    def check(self) -> None:
        check_dims(self.hidden_dim, self.num_heads)

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> MaskFormerHead:
        """Raises ConfigError unless there is a map at stride 4, with `mask_dim` channels if it is `mask_features`."""
        return MaskFormerHead(self, in_specs, num_classes)


class MaskFormerHead(MaskHead):
    """Transformer decoder on the coarsest map, class and mask heads shared by all its layers.

    Differs from paper: none. Padding is not masked in attention, as in the published models.
    """

    def __init__(self, config: MaskFormerHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        dim = config.hidden_dim
        mask_index = find_mask_features("maskformer", in_specs)
        mask_dim, to_mask_features = mask_projection(in_specs[mask_index], config.mask_dim, dim, config.mask_positions)
        super().__init__(config.loss, num_classes, mask_dim)
        self.mask_index, self.mask_projection = mask_index, to_mask_features
        self.deep_supervision = config.deep_supervision

        self.memory_index = max(range(len(in_specs)), key=lambda i: in_specs[i].stride)
        memory_channels = in_specs[self.memory_index].channels
        self.input_projection = projection(memory_channels, dim) if memory_channels != dim else nn.Identity()

        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.layers = nn.ModuleList(
            DetrDecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, num_layers=3)

    def forward(self, features: tuple[Tensor, ...]) -> MaskOutputs:
        """Maps of `in_specs` -> class logits, mask embeddings and mask features."""
        hidden = self._decode(self.input_projection(features[self.memory_index]))
        logits, embed = self.class_embed(hidden), self.mask_embed(hidden)
        return MaskOutputs(
            pred_logits=logits[-1],
            mask_embed=embed[-1],
            mask_features=self.mask_projection(features[self.mask_index]),
            aux_logits=logits[:-1],
            aux_mask_embed=embed[:-1],
        )

    def _decode(self, memory: Tensor) -> Tensor:
        """Memory [B, C, h, w] -> the supervised layers' normalised queries [L + 1, B, Q, C]."""
        batch, channels, height, width = memory.shape
        tokens = memory.flatten(2).transpose(1, 2)  # [B, h * w, C]
        key = tokens + sine_position_encoding(height, width, channels, memory.device, memory.dtype)
        position = self.query_embed.weight
        x = tokens.new_zeros(batch, *position.shape)
        hidden = []
        for layer in self.layers:
            x = layer(x, position, tokens, key)
            hidden.append(x)
        supervised = hidden if self.deep_supervision else hidden[-1:]
        return self.decoder_norm(torch.stack(supervised))
