"""A backbone of your own: strided 3 x 3 convolutions, each of which gives ceil(H / 2) x ceil(W / 2)."""

from dataclasses import dataclass
from itertools import pairwise

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
        channels = [config.width, *config.num_features]
        self.stem = halve(3, config.width)
        self.stages = nn.ModuleList(halve(*pair) for pair in pairwise(channels))

    def forward(self, pixel_values):
        x, maps = self.stem(pixel_values), []
        for spec, stage in zip(self.config.stages, self.stages, strict=True):
            x = stage(x)
            if spec in self.out_specs:  # the stages that out_features, out_indices or out_strides select
                maps.append(x)
        return self.finish(maps, pixel_values.shape[-2:])


def halve(in_channels, out_channels):
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())
