"""Plain vision transformers: ViT (Dosovitskiy et al. 2021), DINOv2 (Oquab et al. 2023) with and without registers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vision_stack.backbones.base import BackboneOutput, pad_to_multiple
from vision_stack.backbones.families.base import (
    Epsilon,
    FamilyBackbone,
    FamilyConfig,
    Pixels,
    Ratio,
    Width,
    default_heads,
)
from vision_stack.backbones.tail import check_tail, reserve_queries, run_to_tail
from vision_stack.config import ConfigError, Layers, Range, register
from vision_stack.structures import BackboneConfig, FeatureSpec, TailSpec
from vision_stack.weights.vit import convert_dinov2, convert_dinov2_with_registers, convert_vit


@dataclass(kw_only=True)
class PlainConfig(FamilyConfig):
    """What plain transformers have in common: one stage per layer, all of one width and one stride, the patch size.

    `neck=simple_pyramid` makes a pyramid of the last map.
    """

    required: ClassVar = {"num_channels": 3, "hidden_act": "gelu"}
    head_multiple: ClassVar[int] = 1  # of the channels of an attention head
    leaves_tail: ClassVar[bool] = True  # not where tokens are those of windows

    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12  # where it is left at the default, what fits `hidden_size`
    patch_size: Pixels = 16
    layer_norm_eps: Epsilon = 1e-6
    apply_layernorm: bool = False  # the final LayerNorm on every map

    def with_tail(self, tail: TailSpec) -> BackboneConfig:
        """See `BackboneConfig.with_tail`."""
        if not self.leaves_tail:
            return super().with_tail(tail)
        check_tail(tail, self.num_hidden_layers)
        return self._with("tail", tail)

    def check(self) -> None:
        if self.is_default("num_attention_heads"):
            heads, multiple = self.num_attention_heads, self.head_multiple
            self.num_attention_heads = default_heads(self.hidden_size, heads, channels=64, multiple=multiple)
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads: {self.num_attention_heads} does not divide hidden_size ({self.hidden_size})"
            )

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        names = ("stem", *(f"stage{i + 1}" for i in range(self.num_hidden_layers)))
        return tuple(FeatureSpec(name, self.hidden_size, self.patch_size) for name in names)

    def timm_options(self) -> dict[str, Any]:
        return {
            "embed_dim": self.hidden_size,
            "depth": self.num_hidden_layers,
            "num_heads": self.num_attention_heads,
            "patch_size": self.patch_size,
            "drop_path_rate": self.drop_path_rate,
            "norm_layer": partial(nn.LayerNorm, eps=self.layer_norm_eps),
            "num_classes": 0,
            "dynamic_img_size": True,
        }


@dataclass(kw_only=True)
class _LearntPositions(PlainConfig):
    """Plain transformers with a table of positions, which is resampled for images of other sizes."""

    image_size: Pixels = 224  # of the table
    qkv_bias: bool = True

    def check(self) -> None:
        super().check()
        if self.is_default("image_size"):
            self.image_size = max(self.image_size, self.patch_size)
        if not 1 <= self.image_size // self.patch_size <= 512:
            raise ConfigError(f"image_size: 1 to 512 patches of {self.patch_size} pixels a side, got {self.image_size}")

    def timm_options(self) -> dict[str, Any]:
        return {**super().timm_options(), "img_size": self.image_size, "qkv_bias": self.qkv_bias}

    def make_net(self) -> nn.Module:
        return VisionTransformer(**self.timm_options())


@register("backbone", "vit")
@dataclass(kw_only=True)
class ViTConfig(_LearntPositions):
    """ViT-B/16 by default."""

    intermediate_size: Width = 3072
    layer_norm_eps: Epsilon = 1e-12

    def timm_options(self) -> dict[str, Any]:
        return {**super().timm_options(), "mlp_ratio": exact_ratio(self.intermediate_size, self.hidden_size)}

    def build(self) -> ViTBackbone:
        return ViTBackbone(self)


@register("backbone", "dinov2")
@dataclass(kw_only=True)
class Dinov2Config(_LearntPositions):
    """DINOv2 ViT-B/14 by default, of transformers' defaults; the published models have a table for 518 pixels.

    Differs from transformers: `drop_path_rate` grows with depth, there it is the same in every layer.
    """

    patch_size: Pixels = 14
    mlp_ratio: Ratio = 4.0
    layerscale_value: Annotated[float, Range(1e-12, 1e3)] = 1.0
    use_swiglu_ffn: bool = False  # the giant's
    apply_layernorm: bool = True  # the final LayerNorm on every map

    def timm_options(self) -> dict[str, Any]:
        width = int(self.hidden_size * self.mlp_ratio)
        options = {**super().timm_options(), "init_values": self.layerscale_value}
        if not self.use_swiglu_ffn:
            return {**options, "mlp_ratio": exact_ratio(width, self.hidden_size)}
        packed = 2 * ((int(width * 2 / 3) + 7) // 8 * 8)  # gate and value side by side
        return {
            **options,
            "mlp_ratio": exact_ratio(packed, self.hidden_size),
            "mlp_layer": SwiGLUPacked,
            "act_layer": nn.SiLU,
        }

    def transformers_fields(self) -> dict[str, Any]:
        return {"mlp_ratio": int(self.mlp_ratio)} if self.mlp_ratio.is_integer() else {}  # it takes no other

    def build(self) -> ViTBackbone:
        return Dinov2Backbone(self)


@register("backbone", "dinov2_with_registers")
@dataclass(kw_only=True)
class Dinov2WithRegistersConfig(Dinov2Config):
    """DINOv2 with register tokens (Darcet et al. 2023)."""

    patch_size: Pixels = 16
    num_register_tokens: Annotated[int, Range(1, 1024)] = 4

    def timm_options(self) -> dict[str, Any]:
        # The position of the class token is added to the token itself, as in timm's own weights.
        return {**super().timm_options(), "reg_tokens": self.num_register_tokens, "no_embed_class": True}

    def build(self) -> ViTBackbone:
        return Dinov2WithRegistersBackbone(self)


def exact_ratio(hidden: int, width: int) -> float:
    """The factor with which timm, which rounds down, makes `hidden` of `width`."""
    return (hidden + 0.5) / width


class PlainBackbone(FamilyBackbone):
    """timm's transformer, layer by layer; class and register tokens are computed with, but are not part of the maps."""

    config: PlainConfig
    landmark = "patch_embed.proj.weight"
    unused = r"classifier\.|head\.|pooler\.|embeddings\.mask_token|decoder\."

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config, multiple=config.patch_size)
        if config.tail:
            self.norms = None  # the tail has the final LayerNorm

    def keep_stages(self, count: int) -> None:
        if self.config.tail:
            reserve_queries(self.net, self.config.tail)
            return
        self.net.blocks = self.net.blocks[:count]
        if not any(self.is_normed(spec) for spec in self.out_specs):
            self.net.norm = nn.Identity()

    def embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Padded pixels -> tokens [B, P + h * w, C], and what all blocks are given beside them."""
        raise NotImplementedError

    def run(self, x: Tensor) -> Iterator[Tensor]:
        tokens, options = self.embed(x)
        yield tokens
        for block in self.net.blocks:
            tokens = block(tokens, **options)
            yield tokens

    def _forward(self, pixel_values: Tensor, output_hidden_states: bool) -> BackboneOutput:
        if self.config.tail is None:
            return super()._forward(pixel_values, output_hidden_states)
        padded = pad_to_multiple(pixel_values, self.multiple)
        tokens, options = self.embed(padded)
        size = (padded.shape[-2], padded.shape[-1])
        tokens, tail = run_to_tail(self.net, tokens, options, self.config.tail, self.config.patch_size, size)
        output = self.finish(
            [self.to_map(tokens, size)] * len(self.out_specs), (pixel_values.shape[-2], pixel_values.shape[-1])
        )
        return output._replace(tokens=tokens, tail=tail)

    def is_normed(self, spec: FeatureSpec) -> bool:
        """Whether the final LayerNorm is applied to this map."""
        return self.config.apply_layernorm

    def final_norm(self, x: Tensor, spec: FeatureSpec) -> Tensor:
        return self.net.norm(x) if self.is_normed(spec) else x

    def tokens(self, x: Tensor) -> Tensor:
        return x

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x[:, self.net.num_prefix_tokens :]  # [B, h * w, C]
        patch = self.config.patch_size
        return x.unflatten(1, (size[0] // patch, size[1] // patch)).permute(0, 3, 1, 2)

    def attention_modules(self) -> list[nn.Module]:
        """Of every layer; class and register tokens come first among the N."""
        return [block.attn for block in self.net.blocks]

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {f"stage{i + 1}": f"net.blocks.{i}" for i in range(self.num_stages)}


class ViTBackbone(PlainBackbone):
    """timm's ViT, but for the resampling of its positions, which antialiases in timm and not in transformers."""

    prefix = "vit"
    to_timm = staticmethod(convert_vit)
    antialias = False

    def embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        net = self.net
        tokens = net.patch_embed(x)  # [B, h, w, C]
        height, width = tokens.shape[1:3]
        prefix = 0 if net.no_embed_class else 1  # positions of the class token
        positions = resample_abs_pos_embed(
            net.pos_embed,
            new_size=[height, width],
            old_size=list(net.patch_embed.grid_size),
            num_prefix_tokens=prefix,
            antialias=self.antialias,
        )
        class_token = net.cls_token + positions[:, :1] if prefix else net.cls_token
        first = [class_token] if net.reg_token is None else [class_token, net.reg_token]
        tokens = tokens.flatten(1, 2) + positions[:, prefix:]
        return torch.cat([*(token.expand(tokens.shape[0], -1, -1) for token in first), tokens], dim=1), {}


class Dinov2Backbone(ViTBackbone):
    """timm's ViT with layer scale."""

    prefix = "dinov2"
    to_timm = staticmethod(convert_dinov2)


class Dinov2WithRegistersBackbone(ViTBackbone):
    """timm's ViT with layer scale and registers. Positions are resampled with antialiasing, as in transformers."""

    prefix = "dinov2_with_registers"
    to_timm = staticmethod(convert_dinov2_with_registers)
    antialias = True
