"""Mask2Former's transformer decoder with masked attention (Cheng et al. 2022, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Fraction, Layers, register
from vision_stack.heads.mask import MaskHead, MaskHeadConfig, projection
from vision_stack.layers.mlp import MLP
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.layers.transformer import MaskedDecoderLayer
from vision_stack.losses.criterion import MaskCriterionConfig
from vision_stack.outputs import MaskOutputs
from vision_stack.structures import Features, FeatureSpec, Target


def _point_losses() -> MaskCriterionConfig:
    return MaskCriterionConfig(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, mask_loss="point")


USUAL_LEVELS = 3  # or as many as there are: a backbone with fewer stages gives fewer


@register("head", "mask2former")
@dataclass(frozen=True, kw_only=True)
class Mask2FormerHeadConfig(MaskHeadConfig):
    """Queries read one level after the other, each only inside the mask that it predicted last."""

    num_decoder_layers: Layers = 9  # nine layers, ten supervised outputs
    dropout: Fraction = 0.0
    loss: MaskCriterionConfig = field(default_factory=_point_losses)
    enforce_input_projection: bool = False  # project maps even where they have hidden_dim channels already
    num_levels: Count = USUAL_LEVELS  # maps coarser than the mask features that are read, the coarsest first

    def build(self, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> Mask2FormerHead:
        """Raises ConfigError unless there are a map at stride 4 and a coarser one."""
        return Mask2FormerHead(self, in_specs, num_classes)


class Mask2FormerHead(MaskHead):
    """Masked-attention decoder; predicts before the first layer and after each.

    The masks that attention needs are made at the level's own size, from mask features resized once per level:
    resizing is linear, so that is the resized mask (up to rounding), and full-size masks of the layers are never made.
    Differs from paper: none with neck=ms_deform; other necks give other levels, at most `num_levels` of them are read.
    """

    query_layers: ClassVar[tuple[str, ...]] = ("query_embed.", "query_feat.")

    def __init__(self, config: Mask2FormerHeadConfig, in_specs: tuple[FeatureSpec, ...], num_classes: int) -> None:
        super().__init__(config, in_specs, num_classes)
        dim = config.hidden_dim

        finest = in_specs[self.mask_index].stride
        strides = tuple(spec.stride for spec in in_specs)
        levels = sorted((i for i, stride in enumerate(strides) if stride > finest), key=lambda i: -strides[i])
        if not levels:
            raise ConfigError(
                f"head: mask2former needs maps coarser than stride {finest} too, got {strides}; use neck=fpn"
            )
        if config.num_levels > max(len(levels), USUAL_LEVELS):
            raise ConfigError(
                f"head.num_levels: {config.num_levels}, but only {len(levels)} maps are coarser than the mask features "
                f"(strides {strides}); give at most {max(len(levels), USUAL_LEVELS)}"
            )
        self.level_indices = levels[: config.num_levels]
        self.input_projections = nn.ModuleList(
            projection(in_specs[i].channels, dim)
            if config.enforce_input_projection or in_specs[i].channels != dim
            else nn.Identity()
            for i in self.level_indices
        )
        self.level_embed = nn.Embedding(len(self.level_indices), dim)

        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, self.mask_dim, num_layers=3)

    def forward(self, features: Features, targets: Sequence[Target] | None = None) -> MaskOutputs:
        """Maps of `in_specs` -> class logits, mask embeddings and mask features."""
        mask_features = self.mask_projection(features[self.mask_index])
        levels = [self._tokens(i, features[index]) for i, index in enumerate(self.level_indices)]
        resized = [
            F.interpolate(mask_features.detach(), size=features[i].shape[-2:], mode="bilinear").flatten(2)
            for i in self.level_indices
        ]
        position = self.query_embed.weight
        x = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        hidden = [self.decoder_norm(x)]
        for number, layer in enumerate(self.layers):
            level = number % len(levels)
            tokens, key = levels[level]
            x = layer(x, position, tokens, key, self._attend(hidden[-1], resized[level]))
            hidden.append(self.decoder_norm(x))
        stacked = torch.stack(hidden)
        logits, embed = self.class_embed(stacked), self.mask_embed(stacked)
        return MaskOutputs(
            pred_logits=logits[-1],
            mask_embed=embed[-1],
            mask_features=mask_features,
            aux_logits=logits[:-1],
            aux_mask_embed=embed[:-1],
        )

    def _tokens(self, level: int, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Values and keys of a level, [B, h * w, C]; the keys have positions."""
        x = self.input_projections[level](feature_map)
        _, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return tokens, tokens + sine_position_encoding(height, width, channels, x.device, x.dtype)

    @torch.no_grad()
    def _attend(self, hidden: Tensor, resized: Tensor) -> Tensor:
        """Where each query may look: inside its mask, or everywhere if that is empty. [B, Q, h * w] bool."""
        inside = self.mask_embed(hidden) @ resized > 0
        return inside | ~inside.any(2, keepdim=True)
