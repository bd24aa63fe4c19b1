"""A backbone of your own: strided 3 x 3 convolutions, each of which gives ceil(H / 2) x ceil(W / 2)."""

from dataclasses import dataclass
from itertools import pairwise

from timm.layers import ConvNormAct
from torch import nn

from vision_stack.backbones import Backbone, BackboneConfigMixin
from vision_stack.config import Count, register
from vision_stack.structures import FeatureSpec


@register("backbone", "plain_cnn")  # the name under `type`
@dataclass(kw_only=True)
class PlainCNNConfig(BackboneConfigMixin):
    width: Count = 16  # channels of stage 1, doubled by each later one

    @property
    def stages(self):
        return tuple(FeatureSpec(f"stage{i + 1}", self.width * 2**i, 4 * 2**i) for i in range(4))

    def build(self):
        return PlainCNN(self)


class PlainCNN(Backbone):
    def __init__(self, config):
        super().__init__(config)
        widths = [config.width, *config.num_features]
        self.stem = ConvNormAct(3, config.width, kernel_size=3, stride=2)
        self.stages = nn.ModuleList(ConvNormAct(n, m, kernel_size=3, stride=2) for n, m in pairwise(widths))

    def forward(self, pixel_values):
        x, maps = self.stem(pixel_values), {}
        for spec, stage in zip(self.config.stages, self.stages, strict=True):
            maps[spec] = x = stage(x)
        return self.finish([maps[spec] for spec in self.out_specs], pixel_values.shape[-2:])
