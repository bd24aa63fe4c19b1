"""Any timm model that offers features, under one contract: NCHW maps, any image size, unused stages not built."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import InitVar, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

import timm
from timm.layers import Format, unfreeze_batch_norm_2d
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, group_parameters
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vision_stack.backbones.base import (
    Backbone,
    BackboneConfigMixin,
    BackboneOutput,
    OutputNorms,
    crop_to_image,
    freeze_batch_norms,
    pad_to_multiple,
)
from vision_stack.backbones.hub import PublishedWeights
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.pretrained import Pretrained, load_initial_weights
from vision_stack.backbones.rotary import take_any_grid
from vision_stack.backbones.swin_windows import pad_before_shift
from vision_stack.backbones.tail import check_tail, reserve_queries, run_to_tail
from vision_stack.backbones.timm_sizes import IMG_SIZE_UNUSED, ImageSizes, family, image_sizes, keep_rims, pad_to
from vision_stack.backbones.timm_stages import every_stage
from vision_stack.config import ConfigError, Count, Fraction, register
from vision_stack.structures import BackboneConfig, FeatureSpec, TailSpec

# Of features whose stride timm declares wrongly: its stem takes 4 x 4 pixels together.
_TRUE_STRIDES = {("tresnet", 0): 4}


@register("backbone", "timm")
@dataclass(kw_only=True)
class TimmBackboneConfig(BackboneConfigMixin):
    """A timm model by name, with a tag or without: `TimmBackboneConfig("resnet50.tv_in1k", out_strides=[4, 8, 16])`.

    Stage names and indices are timm's own (a ResNet has five, a ConvNeXt four); strides mean the same everywhere.

    The last three options are transformers' and only for Python. `use_pretrained_backbone` are the initial weights,
    which are not part of the config: True loads the published ones or fails; also "auto" or a path.
    `freeze_batch_norm_2d` is another name of `freeze_norm`. `features_only` can be nothing but True.
    """

    model_name: str = field(kw_only=False)
    output_stride: Literal[8, 16, 32] | None = None  # dilate instead of going coarser; convolutional networks only
    img_size: tuple[Count, Count] | None = None  # (height, width) that position tables are made for; None: the native
    drop_path_rate: Fraction | None = None  # stochastic depth; None: the model's own default
    out_norms: bool = False  # a LayerNorm on each map, as MaskFormer's Swin has
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    use_pretrained_backbone: InitVar[Pretrained] = False
    freeze_batch_norm_2d: InitVar[bool] = False
    features_only: InitVar[bool] = True

    def __post_init__(
        self, use_pretrained_backbone: Pretrained, freeze_batch_norm_2d: bool, features_only: bool
    ) -> None:
        if features_only is not True:
            raise ConfigError(f"features_only: {features_only!r} is not a choice; a backbone has no classifier")
        if freeze_batch_norm_2d:
            self.freeze_norm = freeze_batch_norm_2d
        if use_pretrained_backbone is not False:
            self.__dict__["initial_weights"] = use_pretrained_backbone
        super().__post_init__()

    def check(self) -> None:
        _check_name(self.model_name)
        if self.img_size and _describe(self.model_name, self.output_stride).family in IMG_SIZE_UNUSED:
            raise ConfigError(f"img_size: {self.model_name} can be built for its native size only; leave it null")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return _describe(self.model_name, self.output_stride).stages

    def with_tail(self, tail: TailSpec) -> BackboneConfig:
        """See `BackboneConfig.with_tail`."""
        depth = _describe(self.model_name, None).plain_depth
        if depth is None:
            return super().with_tail(tail)
        check_tail(tail, depth)
        return self._with("tail", tail)

    def build(self) -> TimmBackbone:
        """The backbone, with random weights unless the config came with others."""
        return TimmBackbone(self)


class TimmBackbone(Backbone):
    """The stages of a timm model up to the last selected one."""

    config: TimmBackboneConfig

    def __init__(self, config: TimmBackboneConfig) -> None:
        super().__init__(config)
        facts = _describe(config.model_name, config.output_stride)
        indices = tuple(facts.stages.index(spec) for spec in self.out_specs)
        options = {**facts.sizes.options, **_given(config), **facts.extractor}
        if config.tail:
            self.net: Any = FeatureGetterNet(_create(config.model_name, options), (-1,), norm=True)
            reserve_queries(self.net.model, config.tail)
        else:
            net = _create(config.model_name, {**options, "features_only": True, "out_indices": indices})
            self.net = keep_rims(pad_before_shift(net), facts.family)
        take_any_grid(self.net)
        self.is_nhwc = Format(getattr(self.net, "output_fmt", "NCHW")) == Format.NHWC  # as declared, never guessed
        if config.freeze_norm:
            self.freeze_batch_norm_2d()
        self.norms = OutputNorms(self.out_specs) if self._needs_norms() else None
        self.pads = facts.sizes.pads
        self.img_size = config.img_size or facts.sizes.native  # (height, width)
        coarsest = max(spec.stride for spec in self.out_specs)
        self.multiple = {"patch": facts.stages[0].stride, "coarsest": coarsest}.get(self.pads, 1)
        weights = get_pretrained_cfg(config.model_name)
        if weights is not None:
            self.image_mean, self.image_std = tuple(weights.mean), tuple(weights.std)
            self.published = published_weights(config.model_name)
        load_initial_weights(self)

    def freeze_batch_norm_2d(self) -> None:
        """Every batch norm becomes a fixed scale and shift, which `.train()` does not unfreeze."""
        self.net = freeze_batch_norms(self.net)

    def unfreeze_batch_norm_2d(self) -> None:
        """Undo `freeze_batch_norm_2d`: batch norms again, with the same statistics, scale and shift."""
        self.net = unfreeze_batch_norm_2d(self.net)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BackboneOutput:
        """[B, 3, H, W] -> maps [B, C, ceil(H/stride), ceil(W/stride)]; see `Backbone.forward`.

        Raises:
            ValueError: a model that is built for one image size was given a larger one; attentions.
        """
        if output_attentions:
            self.refuse_attentions(
                "timm keeps no attentions; SwinConfig, Swinv2Config and ViTConfig build models that do"
            )
        height, width = pixel_values.shape[-2:]
        if self.config.tail:
            return self._to_tail(pixel_values, self.config.tail)
        names = self.config.stage_names[: self.config.stages.index(self.out_specs[-1]) + 1]
        try:
            padded = self._pad(pixel_values)
            maps = every_stage(self.net, names, padded) if output_hidden_states else self.net(padded)
        except AssertionError as error:  # timm's own check; its line names the size that would do
            name = self.config.model_name
            line = f"{name} takes no images of {height} x {width} pixels ({error}); choose a model that takes any size"
            raise ValueError(line) from None
        if self.is_nhwc:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if not output_hidden_states:
            return self.finish(maps, (height, width))
        selected = [x for name, x in zip(names, maps, strict=True) if name in (self.config.out_features or ())]
        return self.finish(selected, (height, width), maps)

    def _needs_norms(self) -> bool:
        """Of a tail only where the model has no norm of tokens, but one after pooling."""
        return isinstance(self.net.model.norm, nn.Identity) if self.config.tail else self.config.out_norms

    def _to_tail(self, pixel_values: Tensor, tail: TailSpec) -> BackboneOutput:
        """All but the last blocks of a plain transformer."""
        padded, net = self._pad(pixel_values), self.net.model
        embedded = net._pos_embed(net.patch_embed(padded))  # with Eva's rotary positions
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = net.norm_pre(tokens) if hasattr(net, "norm_pre") else tokens
        size = (padded.shape[-2], padded.shape[-1])
        options = {} if rope is None else {"rope": rope}
        tokens, left = run_to_tail(net, tokens, options, tail, self.out_specs[-1].stride, size)
        x = tokens[:, left.num_prefix :].unflatten(1, left.grid).permute(0, 3, 1, 2)
        maps = crop_to_image(
            [x] * len(self.out_specs), self.out_specs, (pixel_values.shape[-2], pixel_values.shape[-1])
        )
        if self.norms is not None:
            left = left._replace(norm=self.norms[0])
        return BackboneOutput(tuple(maps), tokens=tokens, tail=left)

    def _pad(self, pixel_values: Tensor) -> Tensor:
        """The image as its network takes it: whole strides, whole windows, or the one size that it is built for."""
        (height, width), native = pixel_values.shape[-2:], self.img_size
        if self.pads == "windows":
            return pad_to(pixel_values, (height + -height % native[0], width + -width % native[1]))
        if self.pads != "canvas":
            return pad_to_multiple(pixel_values, self.multiple)
        if height > native[0] or width > native[1]:
            raise ValueError(
                f"{self.config.model_name} takes images of up to {native[0]} x {native[1]} pixels, not "
                f"{height} x {width}; give backbone.img_size=[height,width] of the largest one, or choose a model "
                "that takes any size"
            )
        return pad_to(pixel_values, native)

    def stage_modules(self) -> dict[str, str]:
        """timm's names of its stages; see `FineTunable.stage_modules`."""
        names = {name for name, _ in self.named_modules()}
        places = {spec.name: _place(spec.name, names) for spec in self.config.stages}
        return {stage: place for stage, place in places.items() if place is not None}

    def layer_groups(self) -> list[list[str]]:
        """timm's own grouping (`group_matcher`): a stem, then the blocks one by one where timm has them so."""
        whole = self._whole_on_meta()
        if not hasattr(whole, "group_matcher"):
            return super().layer_groups()
        own = {name for name, _ in self.named_parameters()}
        grouped = group_parameters(whole, whole.group_matcher())
        layers = [[_place(name, own) for name in grouped[i]] for i in sorted(grouped)]
        return [built for layer in layers if (built := [name for name in layer if name])]

    def _whole_on_meta(self) -> Any:
        """The whole classifier, without memory: what timm says of its names."""
        facts = _describe(self.config.model_name, self.config.output_stride)
        with on_meta():
            return _create(self.config.model_name, {**facts.sizes.options, **_given(self.config)})

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """timm's layout, or that of transformers' `TimmBackbone`, -> ours; see `Backbone.convert_weights`."""
        state = {name.removeprefix("_backbone."): value for name, value in state.items()}
        whole = self._whole_on_meta()
        adapt = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        own, known = self.state_dict(), set(whole.state_dict())
        shapes = {_place(name, own.keys()): value.shape for name, value in state.items()}
        if adapt is not None and any(shapes.get(name) != x.shape for name, x in own.items() if name.startswith("net.")):
            state = adapt(dict(state), whole)  # older or foreign layouts of the same model, other position table sizes
        converted, not_built = {}, []
        for key, value in state.items():
            place = _place(key, own.keys())
            if place is None and key in known:
                not_built.append(key)
            else:
                converted[place or key] = value
        return converted, not_built


def _place(name: str, own: Set[str]) -> str | None:
    """The name here of what has this name in timm's classifier or in one of its extractors; None if it is not built."""
    # timm's extractors keep a name, put it below `model`, or join that of a sequence and its member.
    places = (
        f"net.{name}",
        f"net.model.{name}",
        f"net.{name.replace('.', '_', 1)}",
        f"net.model.{name.replace('_', '.', 1)}",
    )
    return next((place for place in places if place in own), None)


class _Facts(NamedTuple):
    """What timm declares about a model."""

    family: str
    stages: tuple[FeatureSpec, ...]
    sizes: ImageSizes
    extractor: dict[str, Any]  # keyword arguments that choose how its features are taken
    plain_depth: int | None  # blocks of a plain transformer


@functools.cache
def _describe(model_name: str, output_stride: int | None) -> _Facts:
    """Built on the meta device: no memory, no arithmetic, no random numbers."""
    dilation = {} if output_stride is None else {"output_stride": output_stride}
    with on_meta():
        whole = _create(model_name, dilation)
        sizes = image_sizes(whole)
        every = tuple(range(len(whole.feature_info)))
        options = {**dilation, **sizes.options, "features_only": True, "out_indices": every}
        net, extractor = _extractor(model_name, options)
    depth = len(whole.blocks) if _is_plain(whole) else None
    return _Facts(family(whole), _stages(family(whole), net.feature_info.info), sizes, extractor, depth)


def _is_plain(model: Any) -> bool:
    """Whether all blocks of a transformer take the same tokens and the same positions."""
    return isinstance(model, VisionTransformer | Eva) and not getattr(model, "rope_mixed", False)


def _extractor(model_name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """timm's own choice, unless it computes all stages, whichever are selected, or fails and the `getter` does not."""
    getter = {"feature_cls": "getter"}
    try:
        net = _create(model_name, options)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        with contextlib.suppress(RuntimeError, AttributeError, TypeError, AssertionError):
            return _create(model_name, options | getter), getter
        reason = str(error).split("\n")[0]
        raise ConfigError(f"model_name: timm offers no feature maps of {model_name!r} ({reason})") from None
    if not isinstance(net, FeatureGetterNet | FeatureListNet):
        with contextlib.suppress(TypeError):  # a few have no other
            _create(model_name, options | getter)
            return net, getter
    return net, {}


def _stages(family: str, declared: Sequence[Mapping[str, Any]]) -> tuple[FeatureSpec, ...]:
    stages: dict[str, FeatureSpec] = {}
    for i, stage in enumerate(declared):
        name = stage["module"] or "stem"
        if name in stages:  # several maps of one module
            name = f"{name}_{i}"
        stride = _TRUE_STRIDES.get((family, i), stage["reduction"])
        stages[name] = FeatureSpec(name, stage["num_chs"], stride)
    return tuple(stages.values())


def _create(model_name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(model_name, pretrained=False, **options)
    except (TypeError, AssertionError) as error:
        asserted = isinstance(error, AssertionError)  # some take an output_stride in order to refuse it
        for name in ("output_stride", "drop_path_rate", "img_size"):
            if name in options and (name in str(error) or (asserted and name != "drop_path_rate")):
                raise ConfigError(f"{name}: {model_name} does not take {options[name]}; leave it null") from None
        raise


def _given(config: TimmBackboneConfig) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in ("output_stride", "drop_path_rate", "img_size")}
    return {name: value for name, value in options.items() if value is not None}


def published_weights(model_name: str) -> PublishedWeights | None:
    """Where the weights of a timm model are published, if they are."""
    weights: Any = get_pretrained_cfg(model_name)
    if weights is None:
        return None
    address = weights.url if isinstance(weights.url, str) and not weights.custom_load else None  # else of jax or so
    if weights.custom_load == "hf" or not (weights.hf_hub_id or address):
        return None
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
