"""torchvision's classifiers as backbones, under the same contract as timm's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth

from vision_stack.backbones.base import (
    Backbone,
    BackboneConfigMixin,
    BackboneOutput,
    OutputNorms,
    freeze_batch_norms,
    pad_to_multiple,
)
from vision_stack.backbones.hub import PublishedWeights
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.pretrained import load_initial_weights
from vision_stack.backbones.torchvision_stages import FAMILIES, Family, Stage, keep_only
from vision_stack.config import ConfigError, Fraction, register
from vision_stack.structures import FeatureSpec


@register("backbone", "torchvision")
@dataclass(kw_only=True)
class TorchvisionBackboneConfig(BackboneConfigMixin):
    """A torchvision classifier by name: `TorchvisionBackboneConfig("resnet50", out_strides=[4, 8, 16, 32])`.

    The stages are "stem", "stage1", ...; of resnets, regnets, convnexts, swins, mobilenets and efficientnets.
    """

    model_name: str = field(kw_only=False)
    weights: str = "DEFAULT"  # which published weights the mean, the std and `pretrained` mean, e.g. IMAGENET1K_V1
    drop_path_rate: Fraction | None = None  # stochastic depth of the deepest block; None: the model's own default
    out_norms: bool = False  # a LayerNorm on each map, as MaskFormer's Swin has
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    def check(self) -> None:
        _check_name(self.model_name)
        tags = models.get_model_weights(self.model_name).__members__
        if self.weights not in tags:
            raise ConfigError(f"weights: {self.model_name} has no {self.weights!r}; choose one of: {', '.join(tags)}")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return tuple(stage.spec for stage in _describe(self.model_name))

    def build(self) -> TorchvisionBackbone:
        """The backbone, with random weights unless the config came with others."""
        return TorchvisionBackbone(self)


class TorchvisionBackbone(Backbone):
    """The stages of a torchvision model up to the last selected one."""

    config: TorchvisionBackboneConfig

    def __init__(self, config: TorchvisionBackboneConfig) -> None:
        super().__init__(config)
        stages = _describe(config.model_name)
        last = [stage.spec for stage in stages].index(self.out_specs[-1])
        self.stages = stages[: last + 1]
        self.net = _whole(config.model_name)
        if config.drop_path_rate is not None:
            _set_drop_path(self.net, config.drop_path_rate)
        keep_only(self.net, {name for stage in self.stages for name in stage.modules})
        if config.freeze_norm:
            self.net = freeze_batch_norms(self.net)
        self.norms = OutputNorms(self.out_specs) if config.out_norms else None
        self.family = _family(config.model_name)
        self.multiple = 1
        if not self.family.rounds_up:
            self.multiple = (stages[0].spec if self.family.pads_itself else self.out_specs[-1]).stride
        weights = models.get_model_weights(config.model_name)[config.weights]
        recipe = weights.transforms()
        self.image_mean, self.image_std = tuple(recipe.mean), tuple(recipe.std)
        self.published = PublishedWeights(None, weights.url)
        load_initial_weights(self)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BackboneOutput:
        """[B, 3, H, W] -> maps [B, C, ceil(H/stride), ceil(W/stride)]; see `Backbone.forward`."""
        if output_attentions:
            self.refuse_attentions("torchvision keeps no attentions; SwinConfig and Swinv2Config build models that do")
        height, width = pixel_values.shape[-2:]
        x = pad_to_multiple(pixel_values, self.multiple)
        maps = []
        for stage in self.stages:
            for name in stage.modules:
                x = self.net.get_submodule(name)(x)
            if output_hidden_states or stage.spec in self.out_specs:
                maps.append(x.permute(0, 3, 1, 2) if self.family.nhwc else x)
        if not output_hidden_states:
            return self.finish(maps, (height, width))
        selected = [x for stage, x in zip(self.stages, maps, strict=True) if stage.spec in self.out_specs]
        return self.finish(selected, (height, width), maps)

    def stage_modules(self) -> dict[str, str]:
        """See `FineTunable.stage_modules`."""
        return {stage.spec.name: f"net.{stage.modules[-1]}" for stage in self.stages}

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """torchvision's layout -> ours; see `Backbone.convert_weights`."""
        with on_meta():
            known = set(_whole(self.config.model_name).state_dict())
        own = set(self.state_dict())
        not_built = [key for key in state if key in known and f"net.{key}" not in own]
        unbuilt = set(not_built)
        return {f"net.{key}" if key in known else key: x for key, x in state.items() if key not in unbuilt}, not_built


@functools.cache
def _describe(model_name: str) -> tuple[Stage, ...]:
    with on_meta(), torch.random.fork_rng(devices=[]):
        return tuple(_family(model_name).stages(_whole(model_name)))


def _whole(model_name: str) -> nn.Module:
    """The classifier with random weights, on the default device."""
    if _module(model_name) != "regnet":
        return models.get_model(model_name, weights=None)
    device = torch.get_default_device()
    with torch.device("cpu"):  # a regnet's widths are computed with tensors, which the meta device cannot
        return models.get_model(model_name, weights=None).to(device)


def _family(model_name: str) -> Family:
    return FAMILIES[_module(model_name)]


def _module(model_name: str) -> str:
    return models.get_model_builder(model_name).__module__.rsplit(".", 1)[-1]


def _check_name(name: str) -> None:
    supported = [known for known in models.list_models(module=models) if _module(known) in FAMILIES]
    if name not in supported:
        close = get_close_matches(name, supported, n=3) or supported
        raise ConfigError(
            f"model_name: no torchvision backbone {name!r}; did you mean {', '.join(close)}? backbone=timm has others"
        )


def _set_drop_path(model: Any, rate: float) -> None:
    """Scale the rates, which grow with depth, so that the deepest block has `rate`."""
    layers = [layer for layer in model.modules() if isinstance(layer, StochasticDepth)]
    highest = max((layer.p for layer in layers), default=0.0)
    if highest == 0.0:
        raise ConfigError(f"drop_path_rate: {type(model).__name__} has no such option; leave it null")
    for layer in layers:
        layer.p *= rate / highest
