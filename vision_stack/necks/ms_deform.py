"""Mask2Former's pixel decoder: multi-scale deformable attention (Cheng et al. 2022, Sec. 3; Zhu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Fraction, register
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import conv_norm, init_conv
from vision_stack.layers.deformable import DeformableEncoderLayer, to_maps, to_tokens
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.structures import Features, FeatureSpec, NeckConfig

MASK_STRIDE = 4


@register("neck", "ms_deform")
@dataclass(frozen=True, kw_only=True)
class MSDeformConfig(NeckConfig):
    """Gives `mask_features` at stride 4 and, for the head's transformer, p3, p4, p5: the maps at strides 8, 16, 32.

    All maps coarser than stride 4 go through the deformable encoder, so that a backbone with more of them gives more.
    """

    channels: Count = 256
    mask_channels: Count = 256
    num_encoder_layers: Depth = 6
    num_heads: Count = 8
    num_points: Count = 4  # that a head of a cell reads of each map
    ffn_dim: Count = 1024
    dropout: Fraction = 0.0

    def check(self) -> None:
        check_width("channels", self.channels, self.num_heads)

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> MSDeform:
        """Raises ConfigError unless there are a map at stride 4, which is the finest, and coarser ones."""
        strides = tuple(spec.stride for spec in in_specs)
        if strides[0] != MASK_STRIDE:
            remedy = (
                "leave out the finer maps (backbone.out_indices or backbone.out_features)"
                if MASK_STRIDE in strides
                else "take a backbone that has one (resnet50, swin_tiny, ...), or neck=simple_pyramid for a plain ViT"
            )
            raise ConfigError(f"neck: ms_deform needs the backbone's finest map at stride 4, got {strides}; {remedy}")
        if len(strides) == 1:
            raise ConfigError(
                f"neck: ms_deform needs maps coarser than stride 4 too, got {strides}; "
                "choose them by backbone.out_strides=[4,8,16,32]"
            )
        if any(coarse <= fine for fine, coarse in pairwise(strides)):
            raise ConfigError(
                f"neck: ms_deform needs increasing strides, got {strides}; use neck=simple_pyramid for a plain ViT"
            )
        return MSDeform(self, in_specs)


class MSDeform(nn.Module):
    """Deformable encoder on the maps at strides 8 and up, then one step of a feature pyramid to stride 4.

    Differs from paper: none. Padding is not masked, as in the published models.
    """

    def __init__(self, config: MSDeformConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        finest, *coarser = in_specs
        channels = config.channels
        # The coarsest map comes first, as in the published weights.
        self.input_projections = nn.ModuleList(
            conv_norm(spec.channels, channels, 1, "group", relu=False, bias=True) for spec in reversed(coarser)
        )
        self.level_embed = nn.Embedding(len(coarser), channels)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                channels, config.num_heads, len(coarser), config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.num_encoder_layers)
        )
        self.lateral = conv_norm(finest.channels, channels, 1, "group", relu=False)
        self.output = conv_norm(channels, channels, 3, "group", relu=True)
        self.mask_projection = init_conv(nn.Conv2d(channels, config.mask_channels, kernel_size=1))
        self.out_specs = (
            FeatureSpec("mask_features", config.mask_channels, finest.stride),
            *(FeatureSpec(f"p{s.stride.bit_length() - 1}", channels, s.stride) for s in coarser),
        )

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs`, fine to coarse -> mask features and the encoded maps, see `out_specs`."""
        finest, *coarser = maps
        encoded = self._encode(
            [projection(x) for projection, x in zip(self.input_projections, coarser[::-1], strict=True)]
        )
        lateral = self.lateral(finest)
        x = self.output(lateral + F.interpolate(encoded[-1], size=lateral.shape[-2:], mode="bilinear"))
        return self.mask_projection(x), *encoded[::-1]

    def _encode(self, levels: list[Tensor]) -> list[Tensor]:
        """Maps [B, C, h, w] through the deformable encoder, as one sequence of all their cells."""
        tokens, shapes = to_tokens(levels)
        position = torch.cat(
            [
                sine_position_encoding(h, w, tokens.shape[2], tokens.device, tokens.dtype) + embed
                for (h, w), embed in zip(shapes, self.level_embed.weight, strict=True)
            ]
        )
        for layer in self.layers:
            tokens = layer(tokens, position, shapes)
        return to_maps(tokens, shapes)
