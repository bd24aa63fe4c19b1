"""Deformable DETR's encoder: deformable self-attention over the cells of all maps (Zhu et al. 2021, Sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Fraction, register
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import conv_norm
from vision_stack.layers.deformable import (
    DeformableEncoderLayer,
    Padding,
    Shapes,
    cell_centers,
    on_each_map,
    padding_of,
    to_maps,
    to_tokens,
)
from vision_stack.layers.position_encoding import centered_position_encoding
from vision_stack.necks.pyramid import strides_from
from vision_stack.structures import Features, FeatureSpec, NeckConfig


@register("neck", "deformable_encoder")
@dataclass(frozen=True, kw_only=True)
class DeformableEncoderConfig(NeckConfig):
    """Maps of equal `channels`, named p3 (stride 8), p4, p5, p6: the backbone's and `extra_levels` coarser ones."""

    channels: Count = 256
    finest_stride: Count = 8  # finer maps are left out
    extra_levels: Depth = 1  # each by a 3x3 convolution of stride 2 on the map before it
    num_encoder_layers: Depth = 6
    num_heads: Count = 8
    num_points: Count = 4  # that a head of a cell reads of each map
    ffn_dim: Count = 1024
    dropout: Fraction = 0.1

    def check(self) -> None:
        check_width("channels", self.channels, self.num_heads)

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> DeformableEncoder:
        """Raises ConfigError unless there are maps from `finest_stride` on, of increasing strides."""
        strides = tuple(spec.stride for spec in in_specs)
        read = strides_from(self.finest_stride, strides)
        if any(coarse <= fine for fine, coarse in pairwise(read)):
            raise ConfigError(
                f"neck: deformable_encoder needs increasing strides, got {strides}; use neck=simple_pyramid for a "
                "plain ViT"
            )
        return DeformableEncoder(self, in_specs)


class DeformableEncoder(nn.Module):
    """Every cell attends to a few points of all maps, within its own image: padding is not read.

    Differs from paper: none.
    """

    def __init__(self, config: DeformableEncoderConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.left_out = sum(spec.stride < config.finest_stride for spec in in_specs)  # the finest maps
        read, channels = in_specs[self.left_out :], config.channels
        strides = [spec.stride for spec in read]
        strides += [strides[-1] * 2 ** (n + 1) for n in range(config.extra_levels)]
        self.out_specs = tuple(FeatureSpec(f"p{s.bit_length() - 1}", channels, s) for s in strides)
        self.projections = nn.ModuleList(
            conv_norm(spec.channels, channels, 1, "group", relu=False, bias=True) for spec in read
        )
        self.extra = nn.ModuleList(
            conv_norm(channels if n else read[-1].channels, channels, 3, "group", relu=False, bias=True, stride=2)
            for n in range(config.extra_levels)
        )
        self.level_embed = nn.Embedding(len(strides), channels)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                channels, config.num_heads, len(strides), config.num_points, config.ffn_dim, config.dropout
            )
            for _ in range(config.num_encoder_layers)
        )

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs`, fine to coarse -> maps of `out_specs`."""
        read = list(maps)[self.left_out :]
        levels = [projection(x) for projection, x in zip(self.projections, read, strict=True)]
        x = read[-1]
        for coarser in self.extra:
            x = coarser(x)
            levels.append(x)
        tokens, shapes = to_tokens(levels)
        padding = padding_of(maps, shapes)
        position = self._positions(tokens, shapes, padding)
        # Without padding every cell's reference is its own place, which the layers know.
        reference = None
        if padding is not None:
            reference = on_each_map(cell_centers(shapes, padding, tokens), padding, len(shapes))
        for layer in self.layers:
            tokens = layer(tokens, position, shapes, reference, padding)
        return tuple(to_maps(tokens, shapes))

    def _positions(self, tokens: Tensor, shapes: Shapes, padding: Padding | None) -> Tensor:
        """Of all cells, with their map's embedding: [1 or B, S, C]."""
        if padding is None:
            valid = tokens.new_ones(1, len(shapes), 2, dtype=torch.promote_types(tokens.dtype, torch.float32))
        else:
            valid = padding.valid
        encoded = [
            centered_position_encoding(height, width, tokens.shape[2], part).to(tokens.dtype) + embed
            for (height, width), part, embed in zip(shapes, valid.unbind(1), self.level_embed.weight, strict=True)
        ]
        return torch.cat(encoded, dim=1)
