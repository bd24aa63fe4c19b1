"""ResNet from its architecture (He et al. 2015) as transformers has it, and RT-DETR's, which is ResNet-D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_avg, make_blocks
from torch import Tensor, nn

from vision_stack.backbones.base import freeze_batch_norms
from vision_stack.backbones.families.base import FamilyBackbone, FamilyConfig, Width, pyramid, same_length
from vision_stack.config import ConfigError, Layers, register
from vision_stack.structures import FeatureSpec
from vision_stack.weights.resnet import convert_resnet, convert_rt_detr_resnet


@register("backbone", "resnet")
@dataclass(kw_only=True)
class ResNetConfig(FamilyConfig):
    """ResNet-50 by default; one to four stages of strides 4, 8, 16, 32."""

    required: ClassVar = {"num_channels": 3, "hidden_act": "relu", "downsample_in_first_stage": False}

    embedding_size: Width = 64  # channels of the stem
    hidden_sizes: tuple[Width, ...] = (256, 512, 1024, 2048)
    depths: tuple[Layers, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    downsample_in_bottleneck: bool = False  # stride in the first 1x1 convolution (v1), not in the 3x3 (v1.5)
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    def check(self) -> None:
        self.fit_lengths(hidden_sizes=2, depths=1)
        same_length(hidden_sizes=self.hidden_sizes, depths=self.depths)
        if len(self.depths) > 4 or sum(self.depths) < 2:
            raise ConfigError(
                f"depths: one to four stages (hidden_sizes) with two blocks at least, got {list(self.depths)}"
            )
        if self.layer_type == "bottleneck" and any(width % 4 for width in self.hidden_sizes):
            raise ConfigError(f"hidden_sizes: multiples of 4 for bottlenecks, got {list(self.hidden_sizes)}")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return pyramid(self.embedding_size, 4, self.hidden_sizes)

    def make_net(self) -> ResNet:
        block: Any = BasicBlock if self.layer_type == "basic" else Bottleneck
        planes = tuple(width // block.expansion for width in self.hidden_sizes)
        net = ResNet(block, self.depths, num_classes=0, channels=planes, drop_path_rate=self.drop_path_rate)
        if self.embedding_size != 64:
            _widen_stem(net, self, block, planes)
        if self.downsample_in_bottleneck and block is Bottleneck:
            _downsample_first(net, len(self.depths))
        return net

    def build(self) -> ResNetBackbone:
        return ResNetBackbone(self)


@register("backbone", "rt_detr_resnet")
@dataclass(kw_only=True)
class RTDetrResNetConfig(ResNetConfig):
    """RT-DETR's ResNet-50-vd by default: ResNet-D (He et al. 2019, Sec. 4) has three convolutions in its stem and pools
    in shortcuts that downsample. With basic blocks there is a convolution in the very first shortcut, too, unlike in
    timm's resnet18d.
    """

    def check(self) -> None:
        super().check()
        if self.embedding_size % 2:
            raise ConfigError(f"embedding_size: a multiple of 2, got {self.embedding_size}")
        widths = (self.embedding_size, *self.hidden_sizes)
        if self.layer_type == "basic" and (widths[0] != widths[1] or len(set(widths[1:])) < len(self.hidden_sizes)):
            raise ConfigError(
                f"hidden_sizes: with basic blocks, embedding_size ({self.embedding_size}) and then all different, got "
                f"{list(self.hidden_sizes)}"
            )

    def make_net(self) -> ResNet:
        block: Any = BasicBlock if self.layer_type == "basic" else Bottleneck
        planes = tuple(width // block.expansion for width in self.hidden_sizes)
        net = ResNet(
            block,
            self.depths,
            num_classes=0,
            channels=planes,
            stem_type="deep",
            stem_width=self.embedding_size // 2,
            avg_down=True,
            drop_path_rate=self.drop_path_rate,
        )
        if block is BasicBlock:
            first: Any = net.get_submodule("layer1.0")
            first.downsample = downsample_avg(planes[0], planes[0], kernel_size=1)
        if self.downsample_in_bottleneck and block is Bottleneck:
            _downsample_first(net, len(self.depths))
        return net

    def build(self) -> RTDetrResNetBackbone:
        return RTDetrResNetBackbone(self)


def _downsample_first(net: ResNet, num_stages: int) -> None:
    """The stride of a bottleneck in its first convolution instead of the second."""
    for stage in range(2, num_stages + 1):
        first: Any = net.get_submodule(f"layer{stage}.0")
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride


def _widen_stem(net: Any, config: ResNetConfig, block: Any, planes: tuple[int, ...]) -> None:
    """Another width than the 64 that timm's stem is fixed to."""
    width = config.embedding_size
    net.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    options: dict[str, Any] = {
        "drop_path_rate": config.drop_path_rate,
        "act_layer": nn.ReLU,
        "norm_layer": nn.BatchNorm2d,
    }
    stages, _ = make_blocks((block,) * len(planes), planes, config.depths, width, **options)
    for name, stage in stages:
        setattr(net, name, stage)
    net.init_weights()


class ResNetBackbone(FamilyBackbone):
    """timm's ResNet. Its convolutions round up, so that images are not padded."""

    config: ResNetConfig
    prefix = "resnet"
    landmark = "conv1.weight"
    unused = r"classifier\.|fc\."
    to_timm = staticmethod(convert_resnet)

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config, multiple=1)
        if config.freeze_norm:
            self.net = freeze_batch_norms(self.net)

    def keep_stages(self, count: int) -> None:
        for stage in range(count + 1, len(self.config.depths) + 1):
            delattr(self.net, f"layer{stage}")

    def run(self, x: Tensor) -> Iterator[Tensor]:
        net = self.net
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        yield x
        for stage in range(1, self.num_stages + 1):
            x = net.get_submodule(f"layer{stage}")(x)
            yield x

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {f"stage{i}": f"net.layer{i}" for i in range(1, self.num_stages + 1)}


class RTDetrResNetBackbone(ResNetBackbone):
    """timm's ResNet with the stem and the shortcuts of ResNet-D."""

    landmark = "conv1.0.weight"
    to_timm = staticmethod(convert_rt_detr_resnet)
