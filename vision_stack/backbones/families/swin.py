"""Swin (Liu et al. 2021) and Swin V2 (Liu et al. 2022) from their architecture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from vision_stack.backbones.families.base import (
    Epsilon,
    FamilyBackbone,
    FamilyConfig,
    Pixels,
    Ratio,
    Width,
    Window,
    default_heads,
    pyramid,
    same_length,
)
from vision_stack.backbones.swin_windows import pad_before_shift
from vision_stack.config import ConfigError, Fraction, Layers, Range, register
from vision_stack.structures import FeatureSpec
from vision_stack.weights.swin import convert_swin, convert_swinv2


@dataclass(kw_only=True)
class _SwinFields(FamilyConfig):
    """What Swin and Swin V2 have in common; Swin-T by default."""

    required: ClassVar = {"num_channels": 3, "hidden_act": "gelu", "use_absolute_embeddings": False}

    patch_size: Pixels = 4
    embed_dim: Width = 96  # channels of the stem and of stage 1; they double from stage to stage
    depths: tuple[Layers, ...] = (2, 2, 6, 2)
    num_heads: tuple[Width, ...] = (3, 6, 12, 24)  # where it is left at that, what fits `depths` and `embed_dim`
    window_size: Window = 7
    mlp_ratio: Ratio = 4.0
    qkv_bias: bool = True
    layer_norm_eps: Epsilon = 1e-5
    drop_path_rate: Fraction = 0.1

    def check(self) -> None:
        heads_follow = self.is_default("num_heads")
        self.fit_lengths(depths=1, num_heads=2)
        if heads_follow:
            first = default_heads(self.embed_dim, heads=3, channels=32)
            self.num_heads = tuple(first * 2**i for i in range(len(self.depths)))
        same_length(depths=self.depths, num_heads=self.num_heads)
        if len(self.depths) > 6:
            raise ConfigError(f"depths: six stages at most, got {len(self.depths)}")
        for spec, heads in zip(self.stages[1:], self.num_heads, strict=True):
            if spec.channels % heads:
                raise ConfigError(f"num_heads: {heads} does not divide the {spec.channels} channels of {spec.name}")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        widths = tuple(self.embed_dim * 2**i for i in range(len(self.depths)))
        return pyramid(self.embed_dim, self.patch_size, widths)

    def timm_options(self) -> dict[str, Any]:
        options = ("patch_size", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "qkv_bias")
        given = {name: getattr(self, name) for name in (*options, "drop_path_rate")}
        return {**given, "num_classes": 0, "strict_img_size": False}


@register("backbone", "swin")
@dataclass(kw_only=True)
class SwinConfig(_SwinFields):
    """Swin. Every other block shifts its windows whatever the image's size, as in transformers' `SwinBackbone`."""

    out_norms: bool = True  # a LayerNorm on each map, as transformers' and the published segmentation models have

    def make_net(self) -> nn.Module:
        return _finish(self, SwinTransformer(**self.timm_options(), always_partition=True))

    def build(self) -> SwinBackbone:
        return SwinBackbone(self)


@register("backbone", "swinv2")
@dataclass(kw_only=True)
class Swinv2Config(_SwinFields):
    """Swin V2. Stages whose map of an image of `image_size` is no larger than a window do not shift, as published."""

    image_size: Pixels = 224
    pretrained_window_sizes: tuple[Annotated[int, Range(0, 4096)], ...] = (0, 0, 0, 0)

    def check(self) -> None:
        super().check()
        if self.is_default("pretrained_window_sizes"):
            self.pretrained_window_sizes = (0,) * len(self.depths)
        same_length(depths=self.depths, pretrained_window_sizes=self.pretrained_window_sizes)

    def make_net(self) -> nn.Module:
        sizes: dict[str, Any] = {"img_size": self.image_size, "pretrained_window_sizes": self.pretrained_window_sizes}
        return _finish(self, SwinTransformerV2(**self.timm_options(), **sizes))

    def build(self) -> Swinv2Backbone:
        return Swinv2Backbone(self)


def _finish(config: _SwinFields, net: Any) -> nn.Module:
    for stage in net.layers:
        for block in stage.blocks:  # the norms of stem and patch merging keep PyTorch's, as in transformers
            block.norm1.eps = block.norm2.eps = config.layer_norm_eps
    return pad_before_shift(net)


class SwinBackbone(FamilyBackbone):
    """timm's Swin. Images are padded to whole patches; maps are padded to whole windows before they are shifted."""

    config: SwinConfig | Swinv2Config
    prefix = "swin"
    landmark = "patch_embed.proj.weight"
    unused = r"classifier\.|head\.|(layer)?norm\.|embeddings\.mask_token|decoder\."
    to_timm = staticmethod(convert_swin)

    def __init__(self, config: SwinConfig | Swinv2Config) -> None:
        super().__init__(config, multiple=config.patch_size)

    def keep_stages(self, count: int) -> None:
        self.net.layers = self.net.layers[:count]
        self.net.norm = self.net.head = nn.Identity()

    def run(self, x: Tensor) -> Iterator[Tensor]:
        x = self.net.patch_embed(x)  # [B, H, W, C] from here on
        yield x
        for stage in self.net.layers:
            x = stage(x)
            yield x

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x.permute(0, 3, 1, 2)

    def attention_modules(self) -> list[nn.Module]:
        """Of the last block of every stage, as in transformers; B counts windows, row by row, within images."""
        return [stage.blocks[-1].attn for stage in self.net.layers]

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {f"stage{i + 1}": f"net.layers.{i}" for i in range(self.num_stages)}


class Swinv2Backbone(SwinBackbone):
    """timm's Swin V2."""

    prefix = "swinv2"
    to_timm = staticmethod(convert_swinv2)
