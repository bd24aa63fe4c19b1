"""DINOv3's plain vision transformer (Siméoni et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from vision_stack.backbones.families.base import Epsilon, Width
from vision_stack.backbones.families.vit import PlainBackbone, PlainConfig, exact_ratio
from vision_stack.backbones.rotary import take_any_grid
from vision_stack.config import ConfigError, Range, register
from vision_stack.structures import FeatureSpec
from vision_stack.weights.vit import convert_dinov3


@register("backbone", "dinov3_vit")
@dataclass(kw_only=True)
class DINOv3ViTConfig(PlainConfig):
    """DINOv3 ViT-S/16 by default. Rotary positions: any image size, no table.

    Differs from transformers: the random shifts and scales of positions in pretraining are not made in training.
    """

    required: ClassVar = {"num_channels": 3, "proj_bias": True, "mlp_bias": True}
    head_multiple: ClassVar = 4

    hidden_size: Width = 384
    num_attention_heads: Width = 6
    intermediate_size: Width = 1536
    num_register_tokens: Annotated[int, Range(0, 1024)] = 0  # 4 in the published models
    rope_theta: Annotated[float, Range(1.0, 1e6)] = 100.0
    query_bias: bool = True
    key_bias: bool = False  # zero in the published models that have it
    value_bias: bool = True
    use_gated_mlp: bool = False
    layerscale_value: Annotated[float, Range(1e-12, 1e3)] = 1.0
    layer_norm_eps: Epsilon = 1e-5
    apply_layernorm: bool = True  # the final LayerNorm on every map; the last layer's has it in any case

    @classmethod
    def from_transformers(cls, raw: Mapping[str, Any]) -> Self:
        expected = "silu" if raw.get("use_gated_mlp") else "gelu"
        given = raw.get("hidden_act", "gelu")
        if given != expected:
            raise ConfigError(f"hidden_act: {given!r} is not supported here, only {expected!r} is")
        return super().from_transformers(raw)

    def transformers_fields(self) -> dict[str, Any]:
        return {"hidden_act": "silu" if self.use_gated_mlp else "gelu"}

    def check(self) -> None:
        super().check()
        if self.query_bias != self.value_bias:
            raise ConfigError("query_bias: must equal value_bias")
        if self.key_bias and not self.query_bias:
            raise ConfigError("key_bias: needs query_bias")
        if self.hidden_size // self.num_attention_heads % self.head_multiple:
            raise ConfigError(
                f"num_attention_heads: {self.num_attention_heads} of hidden_size {self.hidden_size} have "
                f"{self.hidden_size // self.num_attention_heads} channels each; rotary positions need a multiple of 4"
            )

    def make_net(self) -> nn.Module:
        net = Eva(
            **self.timm_options(),
            mlp_ratio=exact_ratio(self.intermediate_size, self.hidden_size),
            qkv_bias=self.query_bias,
            init_values=self.layerscale_value,
            num_reg_tokens=self.num_register_tokens,
            swiglu_mlp=self.use_gated_mlp,
            swiglu_align_to=1,  # gate and value apart, as in timm's own DINOv3
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_temperature=self.rope_theta,
            rope_rotate_half=True,
            use_fc_norm=False,
        )
        take_any_grid(net)
        if self.key_bias:
            attentions: Any = [block.attn for block in net.blocks]
            for attention in attentions:
                del attention.k_bias  # timm's zeros
                attention.k_bias = nn.Parameter(torch.zeros(self.hidden_size))
        return net

    def build(self) -> DINOv3ViTBackbone:
        return DINOv3ViTBackbone(self)


class DINOv3ViTBackbone(PlainBackbone):
    """timm's EVA with DINOv3's rotary positions."""

    config: DINOv3ViTConfig
    prefix = "model"
    to_timm = staticmethod(convert_dinov3)

    def is_normed(self, spec: FeatureSpec) -> bool:
        return self.config.apply_layernorm or spec == self.config.stages[-1]

    def embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, rope = self.net._pos_embed(self.net.patch_embed(x))
        return tokens, {"rope": rope}
