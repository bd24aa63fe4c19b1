"""MaskFormer's transformer decoder and prediction heads (Cheng et al. 2021, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from vision_stack.config import register
from vision_stack.heads.mask import MaskHead, MaskHeadConfig, projection
from vision_stack.layers.mlp import MLP
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.layers.transformer import DetrDecoderLayer
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Features, FeatureSpec, Target


@register("head", "maskformer")
@dataclass(frozen=True, kw_only=True)
class MaskFormerHeadConfig(MaskHeadConfig):
    """Queries read the coarsest map; each gives class logits and an embedding that pixels multiply to its mask."""

    deep_supervision: bool = True  # every decoder layer predicts and is trained, not only the last

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> MaskFormerHead:
        """Raises ConfigError unless there is a map at stride 4, with `mask_dim` channels if it is `mask_features`."""
        return MaskFormerHead(self, in_specs, num_classes)


class MaskFormerHead(MaskHead):
    """Transformer decoder on the coarsest map, class and mask heads shared by all its layers.

    Differs from paper: none. Padding is not masked in attention, as in the published models.
    """

    query_layers: ClassVar[tuple[str, ...]] = ("query_embed.",)

    def __init__(self, config: MaskFormerHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim
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
        self.mask_embed = MLP(dim, dim, self.mask_dim, num_layers=3)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> MaskOutputs:
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
