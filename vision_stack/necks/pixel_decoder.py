"""MaskFormer's pixel decoder, plain or with a transformer encoder on the coarsest map (Cheng et al. 2021, Sec. 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Fraction, register
from vision_stack.layers.attention import check_width
from vision_stack.layers.conv import conv_norm, init_conv
from vision_stack.layers.position_encoding import sine_position_encoding
from vision_stack.layers.transformer import DetrEncoderLayer, MapEncoder
from vision_stack.structures import Features, FeatureSpec, NeckConfig


@register("neck", "pixel_decoder")
@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig(NeckConfig):
    """Gives `mask_features` at stride 4, and the coarsest map for the head's transformer to read.

    With `num_encoder_layers: 0` (the paper's Swin models) that map is the backbone's own, untouched; with 6 (its R50
    COCO-panoptic models) it is the encoder's output, of `channels` channels. Either way it keeps the backbone's name.

    The plain one is compared with transformers' in the parity tests. transformers has none with an encoder, so that
    is held against PyTorch's own encoder layer, and published weights for it have not been tried.
    """

    channels: Count = 256
    mask_channels: Count = 256
    num_encoder_layers: Depth = 0
    num_heads: Count = 8  # of the encoder, as are the next two
    ffn_dim: Count = 2048
    dropout: Fraction = 0.1

    def check(self) -> None:
        if self.num_encoder_layers:
            check_width("channels", self.channels, self.num_heads, " for the transformer encoder")

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> PixelDecoder:
        """Raises ConfigError unless the finest map has stride 4 and the strides increase."""
        strides = tuple(spec.stride for spec in in_specs)
        if strides[0] != 4:
            remedy = (
                "leave out the finer maps (backbone.out_indices or backbone.out_features)"
                if 4 in strides
                else "take a backbone that has one (resnet50, swin_tiny, ...), or neck=simple_pyramid for a plain ViT"
            )
            raise ConfigError(
                f"neck: pixel_decoder needs the backbone's finest map at stride 4, got {strides}; {remedy}"
            )
        if any(coarse <= fine for fine, coarse in pairwise(strides)):
            raise ConfigError(
                f"neck: pixel_decoder needs increasing strides, got {strides}; use neck=simple_pyramid for a plain ViT"
            )
        return PixelDecoder(self, in_specs)


class PixelDecoder(nn.Module):
    """Top-down sums as in FPN, but each goes through its 3x3 convolution before it is upsampled to the next.

    Differs from paper: none. Any number of maps will do.
    """

    def __init__(self, config: PixelDecoderConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        *finer, coarsest = in_specs
        channels = config.channels
        self.encoder = CoarsestMapEncoder(config, coarsest.channels) if config.num_encoder_layers else None
        memory_channels = channels if self.encoder else coarsest.channels
        self.top = conv_norm(memory_channels, channels, 3, "group", relu=True)
        self.lateral = nn.ModuleList(conv_norm(spec.channels, channels, 1, "group", relu=False) for spec in finer)
        self.output = nn.ModuleList(conv_norm(channels, channels, 3, "group", relu=True) for _ in finer)
        self.mask_projection = init_conv(nn.Conv2d(channels, config.mask_channels, kernel_size=3, padding=1))
        self.out_specs = (
            FeatureSpec("mask_features", config.mask_channels, in_specs[0].stride),
            FeatureSpec(coarsest.name, memory_channels, coarsest.stride),
        )

    def forward(self, maps: Features) -> tuple[Tensor, Tensor]:
        """Maps of `in_specs`, fine to coarse -> (mask features, memory), see `out_specs`."""
        *finer, memory = maps
        if self.encoder is not None:
            memory = self.encoder(memory)
        x = self.top(memory)
        levels = zip(finer, self.lateral, self.output, strict=True)
        for fine, lateral, output in reversed(list(levels)):
            x = output(lateral(fine) + F.interpolate(x, size=fine.shape[-2:], mode="nearest"))
        return self.mask_projection(x), memory


class CoarsestMapEncoder(nn.Module):
    """1x1 projection, sine positions and DETR encoder layers on one map: [B, C_in, h, w] -> [B, channels, h, w]."""

    def __init__(self, config: PixelDecoderConfig, in_channels: int) -> None:
        super().__init__()
        self.input_projection = init_conv(nn.Conv2d(in_channels, config.channels, kernel_size=1))
        self.layers = MapEncoder(
            DetrEncoderLayer(config.channels, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.num_encoder_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_projection(x)
        _, channels, height, width = x.shape
        position = sine_position_encoding(height, width, channels, x.device, x.dtype)
        return self.layers(x, position)
