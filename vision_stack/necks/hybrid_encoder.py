"""RT-DETR's efficient hybrid encoder (Zhao et al. 2023, Sec. 4.2), with its or D-FINE's or DEIMv2's fusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Fraction, Range, register
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import conv_norm_act
from vision_stack.layers.csp import CSPRep, RepELAN
from vision_stack.layers.position_encoding import cell_position_encoding
from vision_stack.layers.transformer import DetrEncoderLayer, MapEncoder
from vision_stack.necks.pyramid import strides_from
from vision_stack.structures import Features, FeatureSpec, NeckConfig


@register("neck", "hybrid_encoder")
@dataclass(frozen=True, kw_only=True)
class HybridEncoderConfig(NeckConfig):
    """Maps of equal `channels`, named p3 (stride 8), p4, p5, from the backbone's at the same strides.

    RT-DETR's published models have `fusion: csp_rep`, D-FINE's `fusion: elan`, DEIMv2's `merge: sum` and, with DINOv3,
    `fusion: elan_light`. Their `depth_mult` is a third of `num_blocks`, their `hidden_expansion` is `expansion`.
    """

    channels: Count = 256
    fusion: Literal["csp_rep", "elan", "elan_light"] = "csp_rep"  # light: without 3x3 convolutions after CSP blocks
    merge: Literal["concat", "sum"] = "concat"  # of the two maps that a fusion block gets
    num_blocks: Depth = 3  # RepVGG blocks in a row
    expansion: Annotated[float, Range(0.1, 8.0)] = 1.0  # of the width inside fusion blocks
    finest_stride: Count = 8  # finer maps are left out
    num_encoder_layers: Depth = 1  # on the coarsest map
    num_heads: Count = 8
    ffn_dim: Count = 1024
    dropout: Fraction = 0.0

    def check(self) -> None:
        check_width("channels", self.channels, self.num_heads)

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> HybridEncoder:
        """Raises ConfigError unless the strides from `finest_stride` on double from map to map."""
        strides = tuple(spec.stride for spec in in_specs)
        read = strides_from(self.finest_stride, strides)
        if any(coarse != 2 * fine for fine, coarse in pairwise(read)):
            raise ConfigError(
                f"neck: hybrid_encoder needs strides that double from map to map, got {tuple(read)}; choose them by "
                "backbone.out_strides=[8,16,32], or use neck=simple_pyramid for a plain ViT"
            )
        return HybridEncoder(self, in_specs)


class HybridEncoder(nn.Module):
    """Attention within the coarsest map (AIFI), then fusion across scales, top-down and bottom-up (CCFM).

    Differs from paper: none. Padding is not masked, as in the published models. Sizes need not be multiples of 32:
    a coarser map is upsampled to the finer one's own size.
    """

    def __init__(self, config: HybridEncoderConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.merge = config.merge
        self.left_out = sum(spec.stride < config.finest_stride for spec in in_specs)  # the finest maps
        read, channels = in_specs[self.left_out :], config.channels
        self.out_specs = tuple(FeatureSpec(f"p{s.stride.bit_length() - 1}", channels, s.stride) for s in read)
        self.projections = nn.ModuleList(conv_norm_act(spec.channels, channels, 1) for spec in read)
        self.encoder = MapEncoder(
            DetrEncoderLayer(channels, config.num_heads, config.ffn_dim, config.dropout, F.gelu)
            for _ in range(config.num_encoder_layers)
        )
        # Step by step, as in the published weights: top-down from the coarsest map, bottom-up from the finest.
        steps = range(len(read) - 1)
        self.laterals = nn.ModuleList(self._lateral(config) for _ in steps)
        self.top_down = nn.ModuleList(self._fusion(config) for _ in steps)
        self.downsample = nn.ModuleList(self._downsample(config) for _ in steps)
        self.bottom_up = nn.ModuleList(self._fusion(config) for _ in steps)

    @staticmethod
    def _fusion(config: HybridEncoderConfig) -> nn.Module:
        channels = config.channels
        given = 2 * channels if config.merge == "concat" else channels
        if config.fusion == "csp_rep":
            return CSPRep(given, channels, config.num_blocks, config.expansion)
        convs = config.fusion == "elan"
        return RepELAN(given, channels, config.num_blocks, config.expansion, convs=convs)

    @staticmethod
    def _lateral(config: HybridEncoderConfig) -> nn.Module:
        activation = nn.SiLU if config.fusion == "csp_rep" else None
        return conv_norm_act(config.channels, config.channels, 1, activation=activation)

    @staticmethod
    def _downsample(config: HybridEncoderConfig) -> nn.Module:
        """Halves a map: by one convolution, or by D-FINE's SCDown, channels and cells apart (YOLOv10, Sec. 3.2)."""
        channels = config.channels
        if config.fusion == "csp_rep":
            return conv_norm_act(channels, channels, 3, stride=2, activation=nn.SiLU)
        across = conv_norm_act(channels, channels, 1)
        return nn.Sequential(across, conv_norm_act(channels, channels, 3, stride=2, groups=channels))

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs`, fine to coarse -> maps of `out_specs`, of the same sizes."""
        read = list(maps)[self.left_out :]
        *finer, x = [projection(x) for projection, x in zip(self.projections, read, strict=True)]
        x = self.encoder(x, cell_position_encoding(x.shape[2], x.shape[3], x.shape[1], x.device, x.dtype))
        laterals = []  # coarse to fine
        for lateral, fuse, fine in zip(self.laterals, self.top_down, reversed(finer), strict=True):
            laterals.append(lateral(x))
            upsampled = F.interpolate(laterals[-1], size=fine.shape[-2:], mode="nearest")
            x = fuse(self._merged(upsampled, fine))
        pyramid = [x]
        for downsample, fuse, coarse in zip(self.downsample, self.bottom_up, reversed(laterals), strict=True):
            pyramid.append(fuse(self._merged(downsample(pyramid[-1]), coarse)))
        return tuple(pyramid)

    def _merged(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=1) if self.merge == "concat" else x + y
