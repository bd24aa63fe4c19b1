"""Any timm model that offers features, under one contract: NCHW maps, any image size, unused stages not built."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Mapping, Set
from dataclasses import InitVar, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.layers import Format, unfreeze_batch_norm_2d
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, group_parameters
from timm.models._features import FeatureGetterNet, FeatureListNet
from torch import Tensor, nn

from vision_stack.backbones.base import (
    Backbone,
    BackboneConfigMixin,
    BackboneOutput,
    OutputNorms,
    PublishedWeights,
    freeze_batch_norms,
    pad_to_multiple,
)
from vision_stack.backbones.pretrained import Pretrained, load_initial_weights
from vision_stack.backbones.swin_windows import pad_before_shift
from vision_stack.config import ConfigError, Fraction, register
from vision_stack.structures import FeatureSpec

# Built for one image size, these classes otherwise refuse others; Swin would besides drop the shift of its last stage.
_ANY_SIZE = {"strict_img_size": False, "always_partition": True, "dynamic_img_size": True}
# timm modules whose strided layers all round up. Others are padded to the coarsest stride that is asked for.
# fmt: off
_ROUND_UP = (
    "dpn", "efficientnet", "ghostnet", "hardcorenas", "hgnet", "mobilenetv3", "nfnet", "pvt_v2", "regnet", "repvit",
    "res2net", "resnest", "resnet", "resnetv2", "rexnet", "sknet",
)
# fmt: on
# These pad between their stages, so that only the patches of the stem must come out even.
_PAD_THEMSELVES = ("swin_transformer", "swin_transformer_v2")


@register("backbone", "timm")
@dataclass(kw_only=True)
class TimmBackboneConfig(BackboneConfigMixin):
    """A timm model by name, with a tag or without: `TimmBackboneConfig("resnet50.tv_in1k", out_strides=[4, 8, 16])`.

    Stage names and indices are timm's own (a ResNet has five, a ConvNeXt four); strides mean the same everywhere.

    The last three options are for Python, in transformers' words: initial weights (True loads the published ones or
    fails; also "auto" or a path), which are no part of the config; what `freeze_norm` is; and that only features are
    given, which is so in any case.
    """

    model_name: str = field(kw_only=False)
    output_stride: Literal[8, 16, 32] | None = None  # dilate instead of going coarser; convolutional networks only
    drop_path_rate: Fraction | None = None  # stochastic depth; None: the model's own default
    out_norms: bool = False  # a LayerNorm on each map, as MaskFormer's Swin has
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    use_pretrained_backbone: InitVar[Pretrained] = False
    freeze_batch_norm_2d: InitVar[bool] = False
    features_only: InitVar[bool] = True

    def __post_init__(  # type: ignore[override]
        self, use_pretrained_backbone: Pretrained, freeze_batch_norm_2d: bool, features_only: bool
    ) -> None:
        if features_only is not True:
            raise ConfigError(f"features_only: {features_only!r} is no choice; a backbone has no classifier")
        if freeze_batch_norm_2d:
            self.freeze_norm = freeze_batch_norm_2d
        if use_pretrained_backbone is not False:
            self.__dict__["initial_weights"] = use_pretrained_backbone
        super().__post_init__()

    def check(self) -> None:
        _check_name(self.model_name)

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return _describe(self.model_name, self.output_stride).stages

    def build(self) -> TimmBackbone:
        """The backbone, with random weights."""
        return TimmBackbone(self)


class TimmBackbone(Backbone):
    """The stages of a timm model up to the last selected one."""

    config: TimmBackboneConfig

    def __init__(self, config: TimmBackboneConfig) -> None:
        super().__init__(config)
        facts = _describe(config.model_name, config.output_stride)
        indices = tuple(facts.stages.index(spec) for spec in self.out_specs)
        options = {**_given(config), **facts.options, **facts.extractor}
        self.net = pad_before_shift(
            _create(config.model_name, {**options, "features_only": True, "out_indices": indices})
        )
        self.is_nhwc = Format(getattr(self.net, "output_fmt", "NCHW")) == Format.NHWC  # as declared, never guessed
        if config.freeze_norm:
            self.freeze_batch_norm_2d()
        self.norms = OutputNorms(self.out_specs) if config.out_norms else None
        coarsest = max(spec.stride for spec in self.out_specs)
        self.multiple = {"none": 1, "patch": facts.stages[0].stride, "coarsest": coarsest}[facts.pads]
        weights = get_pretrained_cfg(config.model_name)
        if weights is not None:
            self.image_mean, self.image_std = tuple(weights.mean), tuple(weights.std)
            self.published = _published(weights)
        load_initial_weights(self)

    def freeze_batch_norm_2d(self) -> None:
        """Every batch norm becomes a fixed scale and shift, which `.train()` does not thaw."""
        self.net = freeze_batch_norms(self.net)

    def unfreeze_batch_norm_2d(self) -> None:
        """Undo `freeze_batch_norm_2d`: batch norms again, with the same statistics, scale and shift."""
        self.net = unfreeze_batch_norm_2d(self.net)

    def forward(self, pixel_values: Tensor) -> BackboneOutput:
        """[B, 3, H, W] -> maps [B, C, ceil(H/stride), ceil(W/stride)].

        Raises:
            ValueError: a model that is built for one image size only was given another.
        """
        height, width = pixel_values.shape[-2:]
        try:
            maps = self.net(pad_to_multiple(pixel_values, self.multiple))
        except AssertionError as error:  # timm's own check; its line names the size that would do
            name = self.config.model_name
            line = f"{name} takes no images of {height} x {width} pixels ({error}); choose a model that takes any size"
            raise ValueError(line) from None
        if self.is_nhwc:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return self.finish(maps, (height, width))

    def stage_modules(self) -> dict[str, str]:
        """timm's names of its stages; see `FineTunable.stage_modules`."""
        names = {name for name, _ in self.named_modules()}
        places = {spec.name: _place(spec.name, names) for spec in self.config.stages}
        return {stage: place for stage, place in places.items() if place is not None}

    def layer_groups(self) -> list[list[str]]:
        """timm's own grouping (`group_matcher`): a stem, then the blocks one by one where timm has them so."""
        matcher = getattr(self._whole_on_meta(), "group_matcher", None)
        if matcher is None:
            return super().layer_groups()
        own = {name for name, _ in self.named_parameters()}
        grouped = group_parameters(self._whole_on_meta(), matcher())
        layers = [[_place(name, own) for name in grouped[i]] for i in sorted(grouped)]
        return [built for layer in layers if (built := [name for name in layer if name])]

    def _whole_on_meta(self) -> Any:
        """The whole classifier, without memory: what timm says of its names."""
        facts = _describe(self.config.model_name, self.config.output_stride)
        with torch.device("meta"):
            return _create(self.config.model_name, {**_given(self.config), **facts.options})

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """timm's layout -> ours; see `Backbone.convert_weights`."""
        whole = self._whole_on_meta()
        adapt = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:  # older or foreign layouts of the same model, other position table sizes
            state = adapt(dict(state), whole)
        own, known = set(self.state_dict()), set(whole.state_dict())
        converted, not_built = {}, []
        for key, value in state.items():
            place = _place(key, own)
            if place is None and key in known:
                not_built.append(key)
            else:
                converted[place or key] = value
        return converted, not_built


def _place(name: str, own: Set[str]) -> str | None:
    """The name here of what has this name in timm's classifier; None if it is not built."""
    # timm's extractors keep a name, put it below `model`, or join that of a sequence and its member.
    places = (f"net.{name}", f"net.model.{name}", f"net.{name.replace('.', '_', 1)}")
    return next((place for place in places if place in own), None)


class _Facts(NamedTuple):
    """What timm declares about a model."""

    stages: tuple[FeatureSpec, ...]
    options: dict[str, Any]  # keyword arguments that let it take images of any size
    extractor: dict[str, Any]  # keyword arguments that choose how its features are taken
    pads: Literal["none", "patch", "coarsest"]  # what an image must be padded to


@functools.cache
def _describe(model_name: str, output_stride: int | None) -> _Facts:
    """Built on the meta device: no memory, no arithmetic, no random numbers."""
    dilation = {} if output_stride is None else {"output_stride": output_stride}
    with torch.device("meta"):
        whole = _create(model_name, dilation)
        accepted = inspect.signature(type(whole).__init__).parameters
        options = {name: value for name, value in _ANY_SIZE.items() if name in accepted}
        try:
            net = _create(model_name, {**dilation, **options, "features_only": True})
        except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
            reason = str(error).split("\n")[0]
            raise ConfigError(f"model_name: timm offers no feature maps of {model_name!r} ({reason})") from None
        extractor: dict[str, Any] = {}
        if not isinstance(net, FeatureGetterNet | FeatureListNet):  # would compute all stages, whichever are selected
            with contextlib.suppress(TypeError):  # a few have no other
                _create(model_name, {**dilation, **options, "features_only": True, "feature_cls": "getter"})
                extractor = {"feature_cls": "getter"}
    family = type(whole).__module__.rsplit(".", 1)[-1]
    pads: Literal["none", "patch", "coarsest"] = "coarsest"
    if family in _ROUND_UP and not any(_rounds_down(module) for module in whole.modules()):
        pads = "none"
    elif family in _PAD_THEMSELVES:
        pads = "patch"
    stages = tuple(
        FeatureSpec(stage["module"], stage["num_chs"], stage["reduction"]) for stage in net.feature_info.info
    )
    return _Facts(stages, options, extractor, pads)


def _rounds_down(module: Any) -> bool:
    """A pooling that drops the last row of an odd height, as anti-aliased convolutional networks have."""
    halves = isinstance(module, nn.AvgPool2d) and module.stride in (2, (2, 2))
    return halves and not (module.padding or module.ceil_mode)


def _create(model_name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(model_name, pretrained=False, **options)
    except (TypeError, AssertionError) as error:
        asserted = isinstance(error, AssertionError)  # some take an output_stride in order to refuse it
        for name in ("output_stride", "drop_path_rate"):
            if name in options and (name in str(error) or (asserted and name == "output_stride")):
                raise ConfigError(f"{name}: {model_name} does not take {options[name]}; leave it null") from None
        raise


def _given(config: TimmBackboneConfig) -> dict[str, Any]:
    options = {"output_stride": config.output_stride, "drop_path_rate": config.drop_path_rate}
    return {name: value for name, value in options.items() if value is not None}


def _published(weights: Any) -> PublishedWeights | None:
    if weights.custom_load or not (weights.hf_hub_id or weights.url):
        return None
    address = weights.url if isinstance(weights.url, str) else None
    if weights.hf_hub_filename:
        return PublishedWeights(weights.hf_hub_id, address, (weights.hf_hub_filename,))
    return PublishedWeights(weights.hf_hub_id, address)


def _check_name(name: str) -> None:
    """ConfigError unless timm knows the model and the tag. Names only: no paths, no hub addresses."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3)
        advice = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` lists all"
        raise ConfigError(f"model_name: timm has no model {name!r}; {advice}")
    tags = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise ConfigError(f"model_name: {architecture} has no weights tagged {tag!r}; choose one of: {', '.join(tags)}")
