"""PP-HGNetV2 from its architecture (Cui et al. 2021 and PaddleClas's model card), as D-FINE and DEIMv2 have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from timm.models.hgnet import HighPerfGpuNet, HighPerfGpuStage, StemV2
from torch import Tensor, nn

from vision_stack.backbones.base import freeze_batch_norms
from vision_stack.backbones.families.base import FamilyBackbone, FamilyConfig, Width, pyramid, same_length
from vision_stack.config import ConfigError, Layers, Range, register
from vision_stack.structures import FeatureSpec
from vision_stack.weights.hgnet_v2 import convert_hgnet_v2

Kernel = Annotated[int, Range(1, 31)]


@register("backbone", "hgnet_v2")
@dataclass(kw_only=True)
class HGNetV2Config(FamilyConfig):
    """HGNetV2-B4 by default; one to four stages of strides 4, 8, 16, 32.

    transformers' `hidden_sizes`, `depths` and `embedding_size` are names for counts and channels that follow from the
    fields here; published files have others in them, which build nothing.
    """

    required: ClassVar = {"num_channels": 3, "hidden_act": "relu", "stem_strides": [2, 1, 1, 2, 1]}

    stem_channels: tuple[Width, Width, Width] = (3, 32, 48)  # of the image, inside the stem, of its output
    stage_mid_channels: tuple[Width, ...] = (48, 96, 192, 384)
    stage_out_channels: tuple[Width, ...] = (128, 512, 1024, 2048)
    stage_num_blocks: tuple[Layers, ...] = (1, 1, 3, 1)
    stage_light_block: tuple[bool, ...] = (False, False, True, True)  # a 1x1 and a depthwise convolution for each layer
    stage_kernel_size: tuple[Kernel, ...] = (3, 3, 5, 5)
    stage_numb_of_layers: tuple[Layers, ...] = (6, 6, 6, 6)  # of a block, all of which are concatenated at its end
    use_learnable_affine_block: bool = False  # a scale and a shift after each activation, as in B0 to B3
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    @classmethod
    def from_transformers(cls, raw: Mapping[str, Any]) -> Self:
        config = super().from_transformers(raw)
        count = len(config.stage_out_channels)
        for name, expected in {
            "stage_in_channels": config.stage_in_channels,
            "stage_downsample": [False, *[True] * (count - 1)],
            "stage_downsample_strides": [2] * count,
        }.items():
            given = raw.get(name, expected)
            if not isinstance(given, list | tuple) or list(given)[:count] != expected:
                raise ConfigError(f"{name}: {given!r:.60} is not supported by type={cls.type}, only {expected} is")
        return config

    def transformers_fields(self) -> dict[str, Any]:
        count = len(self.stage_out_channels)
        return {
            "embedding_size": self.stem_channels[2],
            "hidden_sizes": list(self.stage_out_channels),
            "depths": list(self.stage_num_blocks),
            "stage_in_channels": self.stage_in_channels,
            "stage_downsample": [False, *[True] * (count - 1)],
            "stage_downsample_strides": [2] * count,
        }

    def check(self) -> None:
        names = ("mid_channels", "out_channels", "num_blocks", "light_block", "kernel_size", "numb_of_layers")
        lists = {f"stage_{name}": 1 for name in names}
        for name in lists:
            if len(getattr(self, name)) > 4:
                raise ConfigError(f"{name}: one to four stages, got {len(getattr(self, name))}")
        self.fit_lengths(**lists)
        same_length(**{name: getattr(self, name) for name in lists})
        if any(size % 2 == 0 for size in self.stage_kernel_size):
            raise ConfigError(f"stage_kernel_size: odd numbers, got {list(self.stage_kernel_size)}")
        if self.stem_channels[0] != 3 or self.stem_channels[1] < 2:
            raise ConfigError(f"stem_channels: 3 (of the image) and then 2 or more, got {list(self.stem_channels)}")
        if min(self.stage_out_channels) < 2:
            raise ConfigError(f"stage_out_channels: 2 or more, got {list(self.stage_out_channels)}")

    @property
    def stage_in_channels(self) -> list[int]:
        """Of each stage: what the stem or the stage before gives."""
        return [self.stem_channels[2], *self.stage_out_channels[:-1]]

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return pyramid(self.stem_channels[2], 4, self.stage_out_channels)

    def make_net(self) -> HGNetV2:
        return HGNetV2(self)

    def build(self) -> HGNetV2Backbone:
        return HGNetV2Backbone(self)


class HGNetV2(nn.Module):
    """timm's stem and stages, under the names that they have in timm's own network, which always has four stages."""

    group_matcher = HighPerfGpuNet.group_matcher

    def __init__(self, config: HGNetV2Config) -> None:
        super().__init__()
        affine = config.use_learnable_affine_block
        self.stem = StemV2(3, *config.stem_channels[1:], use_lab=affine)
        rates = torch.linspace(0, config.drop_path_rate, sum(config.stage_num_blocks), device="cpu")
        drop_path = [list(map(float, part)) for part in rates.split(list(config.stage_num_blocks))]
        self.stages = nn.Sequential(
            *(
                HighPerfGpuStage(
                    in_chs=config.stage_in_channels[i],
                    mid_chs=config.stage_mid_channels[i],
                    out_chs=config.stage_out_channels[i],
                    block_num=config.stage_num_blocks[i],
                    layer_num=config.stage_numb_of_layers[i],
                    downsample=i > 0,
                    light_block=config.stage_light_block[i],
                    kernel_size=config.stage_kernel_size[i],
                    use_lab=affine,
                    agg="se",
                    drop_path=drop_path[i],
                )
                for i in range(len(config.stage_out_channels))
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class HGNetV2Backbone(FamilyBackbone):
    """timm's HGNetV2. Its convolutions round up, so that images are not padded."""

    config: HGNetV2Config
    prefix = "hgnetv2"
    landmark = "stem.stem1.conv.weight"
    unused = r"head\.|fc\."
    to_timm = staticmethod(convert_hgnet_v2)

    def __init__(self, config: HGNetV2Config) -> None:
        super().__init__(config, multiple=1)
        if config.freeze_norm:
            self.net = freeze_batch_norms(self.net)

    def keep_stages(self, count: int) -> None:
        self.net.stages = self.net.stages[:count]

    def run(self, x: Tensor) -> Iterator[Tensor]:
        x = self.net.stem(x)
        yield x
        for stage in self.net.stages:
            x = stage(x)
            yield x

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {f"stage{i + 1}": f"net.stages.{i}" for i in range(self.num_stages)}
