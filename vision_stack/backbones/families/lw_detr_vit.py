"""LW-DETR's plain transformer (Chen et al. 2024, Sec. 3): no class token, and windows in most of its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vision_stack.backbones.families.base import Epsilon, Pixels, Ratio
from vision_stack.backbones.families.vit import PlainConfig, exact_ratio
from vision_stack.backbones.families.windows import WindowedBackbone
from vision_stack.config import ConfigError, Range, register
from vision_stack.weights.lw_detr_vit import convert_lw_detr_vit


@register("backbone", "lw_detr_vit")
@dataclass(kw_only=True)
class LwDetrViTConfig(PlainConfig):
    """A ViT-B/16 by default; the published models are narrower, and have six to ten layers."""

    required: ClassVar = {"num_channels": 3, "hidden_act": "gelu", "use_absolute_position_embeddings": True}
    leaves_tail: ClassVar = False

    mlp_ratio: Ratio = 4.0
    pretrain_image_size: Pixels = 224  # of the table of positions
    qkv_bias: bool = True  # of queries and values; keys have none
    cae_init_values: Annotated[float, Range(1e-12, 1e3)] = 0.1  # of the layer scale
    num_windows: Annotated[int, Range(1, 4096)] = 16  # of an image: a square number
    window_block_indices: tuple[Annotated[int, Range(0, 200)], ...] = ()  # of the blocks that attend within windows
    layer_norm_eps: Epsilon = 1e-6

    def check(self) -> None:
        super().check()
        if math.isqrt(self.num_windows) ** 2 != self.num_windows:
            raise ConfigError(f"num_windows: a square number, such as 16, got {self.num_windows}")
        if self.is_default("pretrain_image_size"):
            self.pretrain_image_size = max(self.pretrain_image_size, self.patch_size)
        if not 1 <= self.pretrain_image_size // self.patch_size <= 512:
            raise ConfigError(
                f"pretrain_image_size: 1 to 512 patches of {self.patch_size} pixels a side, got "
                f"{self.pretrain_image_size}"
            )

    def transformers_fields(self) -> dict[str, Any]:
        return {"mlp_ratio": int(self.mlp_ratio)} if self.mlp_ratio.is_integer() else {}  # it takes no other

    def make_net(self) -> nn.Module:
        return VisionTransformer(
            **self.timm_options(),
            img_size=self.pretrain_image_size,
            mlp_ratio=exact_ratio(int(self.hidden_size * self.mlp_ratio), self.hidden_size),
            qkv_bias=self.qkv_bias,
            init_values=self.cae_init_values,
            class_token=False,
            no_embed_class=True,
            global_pool="",
        )

    def build(self) -> LwDetrViTBackbone:
        return LwDetrViTBackbone(self)


class LwDetrViTBackbone(WindowedBackbone):
    """timm's ViT with layer scale; the biases of its keys, which change nothing, stay zero."""

    config: LwDetrViTConfig
    prefix = "lw_detr_vit"
    to_timm = staticmethod(convert_lw_detr_vit)

    def __init__(self, config: LwDetrViTConfig) -> None:
        super().__init__(config, math.isqrt(config.num_windows), config.window_block_indices)

    def embed(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        net = self.net
        tokens = net.patch_embed(x)  # [B, h, w, C]
        size = (tokens.shape[1], tokens.shape[2])
        positions = resampled(net.pos_embed, net.patch_embed.grid_size, size, antialias=self.antialias)
        return tokens.flatten(1, 2) + positions, {}


def resampled(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool) -> Tensor:
    """Positions [1, H * W, C] of a grid for one of another size: bicubic, in float32 at least."""
    if old == new:
        return table
    maps = table.to(torch.promote_types(table.dtype, torch.float32)).unflatten(1, old).permute(0, 3, 1, 2)
    return F.interpolate(maps, size=new, mode="bicubic", antialias=antialias).flatten(2).mT.to(table.dtype)
