"""Simple feature pyramid for plain transformers (ViTDet, Li et al. 2022, Sec. 3 and Appendix A.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vision_stack.config import ConfigError, register
from vision_stack.necks.pyramid import PyramidConfig, resample
from vision_stack.structures import Features, FeatureSpec, Pyramid

STRIDES = (4, 8, 16, 32)
RESAMPLED_STRIDE = 16  # of maps whose own stride is not a power of two


@register("neck", "simple_pyramid")
@dataclass(frozen=True, kw_only=True)
class SimplePyramidConfig(PyramidConfig):
    """Maps p2 to p5 (strides 4, 8, 16, 32) of the same `channels`, all made of the backbone's last map."""

    def check(self) -> None:
        if self.extra_levels == "p6p7_on_c5":
            raise ConfigError("extra_levels: p6p7_on_c5 needs the map of stride 32 of a backbone; give p6p7")

    def fitted(self, pyramid: Pyramid) -> Self:
        on_p5 = pyramid.extra_levels == "p6p7_on_c5"
        return super().fitted(pyramid._replace(extra_levels="p6p7") if on_p5 else pyramid)

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> SimplePyramid:
        """Any backbone will do; of several maps the last one is read."""
        return SimplePyramid(self, in_specs[-1])


class SimplePyramid(nn.Module):
    """Deconvolutions to finer strides, max pooling to coarser ones; then a 1x1 and a 3x3 convolution, each with a norm.

    A map of stride 14, as DINOv2's, is first resampled to stride 16 (bilinear, the centres of its cells kept where
    they are in the image), so that the strides are true. The neck does not know the image's size: from
    ceil(H/16) rows it makes twice as many at stride 8, which may be one more than ceil(H/8). Such rows lie beyond the
    image, at the bottom and at the right; `VisionModel` cuts them off.

    Differs from paper: none for stride 16; other strides are not treated there.
    """

    def __init__(self, config: SimplePyramidConfig, in_spec: FeatureSpec) -> None:
        super().__init__()
        _, width, stride = in_spec
        self.in_spec = in_spec
        self.resample = stride / RESAMPLED_STRIDE if stride & (stride - 1) else None
        stride = RESAMPLED_STRIDE if self.resample else stride
        self.out_specs = config.specs(STRIDES)
        targets = [spec.stride for spec in self.out_specs if spec.stride in STRIDES]
        self.levels = nn.ModuleList(_level(width, stride, target, config.channels) for target in targets)
        self.extra = config.coarser(width)

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs` -> maps of `out_specs`, [B, channels, >= ceil(H/stride), >= ceil(W/stride)]."""
        x = maps[-1]
        if self.resample:
            x = resample(x, self.resample)
        pyramid = [level(x) for level in self.levels]
        return (*pyramid, *self.extra(pyramid[-1], x))


def _level(width: int, stride: int, target: int, channels: int) -> nn.Sequential:
    """From a map of `stride` and `width` to one of `target` and `channels`; both strides are powers of two."""
    steps = round(math.log2(stride / target))
    layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-steps)]
    for step in range(steps):
        if step:
            layers += [LayerNorm2d(width), nn.GELU()]
        narrower = max(width // 2, 1)
        layers.append(nn.ConvTranspose2d(width, narrower, kernel_size=2, stride=2))
        width = narrower
    return nn.Sequential(
        *layers,
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
