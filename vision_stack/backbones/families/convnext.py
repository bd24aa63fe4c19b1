"""ConvNeXt (Liu et al. 2022), ConvNeXt V2 (Woo et al. 2023) and DINOv3's ConvNeXt (Siméoni et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from vision_stack.backbones.families.base import (
    Epsilon,
    FamilyBackbone,
    FamilyConfig,
    Pixels,
    Width,
    pyramid,
    same_length,
)
from vision_stack.config import ConfigError, Layers, NonNegative, Range, register
from vision_stack.structures import FeatureSpec
from vision_stack.weights.convnext import convert_convnext, convert_dinov3_convnext


@dataclass(kw_only=True)
class _ConvNextFields(FamilyConfig):
    """What all of them have in common; ConvNeXt-T by default. There are always four stages."""

    required: ClassVar = {"num_channels": 3, "hidden_act": "gelu", "num_stages": 4}
    norm_eps: ClassVar[float] = 1e-6  # of every norm; what transformers calls layer_norm_eps is the classifier's

    hidden_sizes: tuple[Width, ...] = (96, 192, 384, 768)
    depths: tuple[Layers, ...] = (3, 3, 9, 3)

    def check(self) -> None:
        same_length(hidden_sizes=self.hidden_sizes, depths=self.depths)
        if len(self.depths) != 4:
            raise ConfigError(f"depths: a ConvNeXt has four stages, got {len(self.depths)}")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return pyramid(self.hidden_sizes[0], self.timm_options().get("patch_size", 4), self.hidden_sizes)

    def timm_options(self) -> dict[str, Any]:
        raise NotImplementedError

    def make_net(self) -> nn.Module:
        fields = {"depths": self.depths, "dims": self.hidden_sizes, "drop_path_rate": self.drop_path_rate}
        options: dict[str, Any] = {"norm_eps": self.norm_eps, **fields, **self.timm_options()}
        return ConvNeXt(num_classes=0, **options)


@register("backbone", "convnext")
@dataclass(kw_only=True)
class ConvNextConfig(_ConvNextFields):
    """ConvNeXt."""

    patch_size: Pixels = 4  # of the stem
    layer_scale_init_value: NonNegative = 1e-6  # 0: no layer scale
    out_norms: bool = True  # a LayerNorm on each map, as transformers' backbone has

    def timm_options(self) -> dict[str, Any]:
        return {"patch_size": self.patch_size, "ls_init_value": self.layer_scale_init_value or None}

    def build(self) -> ConvNextBackbone:
        return ConvNextBackbone(self)


@register("backbone", "convnextv2")
@dataclass(kw_only=True)
class ConvNextV2Config(_ConvNextFields):
    """ConvNeXt V2: global response normalisation in place of layer scale."""

    patch_size: Pixels = 4  # of the stem
    out_norms: bool = True  # a LayerNorm on each map, as transformers' backbone has

    def timm_options(self) -> dict[str, Any]:
        return {"patch_size": self.patch_size, "ls_init_value": None, "use_grn": True}

    def build(self) -> ConvNextV2Backbone:
        return ConvNextV2Backbone(self)


@register("backbone", "dinov3_convnext")
@dataclass(kw_only=True)
class DINOv3ConvNextConfig(_ConvNextFields):
    """DINOv3's ConvNeXt. The stem is its first convolution and norm; transformers takes the image itself for that."""

    required: ClassVar = {"num_channels": 3, "hidden_act": "gelu"}  # it counts its stages

    layer_norm_eps: Epsilon = 1e-6
    layer_scale_init_value: Annotated[float, Range(1e-12, 1e3)] = 1e-6

    def timm_options(self) -> dict[str, Any]:
        return {"ls_init_value": self.layer_scale_init_value, "norm_eps": self.layer_norm_eps}

    def build(self) -> DINOv3ConvNextBackbone:
        return DINOv3ConvNextBackbone(self)


class ConvNextBackbone(FamilyBackbone):
    """timm's ConvNeXt. Its strided convolutions round down: images are padded to the coarsest stride in use."""

    prefix = "convnext"
    landmark = "stem.0.weight"
    unused = r"classifier\.|head\.|layer_?norm\."
    to_timm = staticmethod(convert_convnext)
    norm_eps = 1e-6

    def __init__(self, config: _ConvNextFields) -> None:
        super().__init__(config, multiple=config.out_specs[-1].stride)

    def keep_stages(self, count: int) -> None:
        self.net.stages = self.net.stages[:count]
        self.net.head = nn.Identity()

    def run(self, x: Tensor) -> Iterator[Tensor]:
        x = self.net.stem(x)
        yield x
        for stage in self.net.stages:
            x = stage(x)
            yield x

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {f"stage{i + 1}": f"net.stages.{i}" for i in range(self.num_stages)}


class ConvNextV2Backbone(ConvNextBackbone):
    """timm's ConvNeXt with global response normalisation, whose statistics include what an image is padded with."""

    prefix = "convnextv2"


class DINOv3ConvNextBackbone(ConvNextBackbone):
    """timm's ConvNeXt."""

    prefix = "model"
    to_timm = staticmethod(convert_dinov3_convnext)
