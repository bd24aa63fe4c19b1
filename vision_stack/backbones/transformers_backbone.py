"""Any other `AutoBackbone` of transformers, under the same contract. Needs the extra `hf`, imported on use."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor

from vision_stack.backbones.base import (
    Backbone,
    BackboneConfigMixin,
    BackboneOutput,
    freeze_batch_norms,
    pad_to_multiple,
)
from vision_stack.backbones.config_json import MAX_ENTRIES
from vision_stack.backbones.meta import on_meta
from vision_stack.backbones.pretrained import load_initial_weights
from vision_stack.config import ConfigError, Positive, register
from vision_stack.structures import FeatureSpec

MAX_NUMBER, MAX_LAYERS = 1_000_000, 200  # far beyond any published backbone
_NOT_BACKBONES = {"timm_backbone", "timm_wrapper"}  # timm's own models, which `type: timm` takes
_LAYER_COUNT = re.compile(r"(^|_)(num_)?(hidden_)?(layers|depths?|blocks)$")
_EVERYWHERE = {"model_type", "out_features", "out_indices", "stage_names", "architectures", "transformers_version"}


@register("backbone", "transformers")
@dataclass(kw_only=True)
class TransformersBackboneConfig(BackboneConfigMixin):
    """A backbone of transformers by its `model_type`: `TransformersBackboneConfig("hiera", architecture={...})`.

    `architecture` holds what differs from transformers' defaults: plain numbers, names and lists, which are checked,
    and reach nothing but transformers' own config class of that type. Strides come from a run on the meta device.
    """

    model_type: str = field(kw_only=False)
    architecture: dict[str, Any] = field(default_factory=dict)
    image_mean: tuple[float, float, float] | None = None  # of RGB in [0, 1], as the weights want it; None: ImageNet's
    image_std: tuple[Positive, Positive, Positive] | None = None
    freeze_norm: bool = False  # batch norms with fixed statistics, scale and shift

    def check(self) -> None:
        check_architecture(self.architecture)
        known = _options(_their_config(self.model_type, "{}"))
        for name in self.architecture:
            if name not in known:
                close = get_close_matches(name, known, n=1) or sorted(known)[:8]
                raise ConfigError(f"architecture.{name}: {self.model_type} has no such option; did you mean {close}?")
        _their_config(self.model_type, _key(self.architecture))  # transformers' own checks

    @classmethod
    def from_transformers(cls, raw: Mapping[str, Any]) -> Self:
        """From a parsed config.json of transformers; what is not an option of the architecture is left out.

        Raises:
            ConfigError: no backbone of transformers, or values that no backbone has.
        """
        model_type = raw.get("model_type")
        if not isinstance(model_type, str):
            raise ConfigError(f"model_type: expected a name, got {model_type!r}")
        known = _options(_their_config(model_type, "{}"))
        architecture = {name: value for name, value in raw.items() if name in known}
        return cls(
            model_type,
            architecture=architecture,
            image_mean=raw.get("image_mean"),
            image_std=raw.get("image_std"),
            out_features=raw.get("out_features"),
            out_indices=raw.get("out_indices") if raw.get("out_features") is None else None,
            freeze_norm=raw.get("freeze_norm", False),
        )

    def to_config_json(self) -> dict[str, Any]:
        plain = self.to_dict()
        del plain["out_indices"]  # which not every type there counts from the same stage as here
        return {**plain.pop("architecture"), **plain}

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        return _describe(self.model_type, _key(self.architecture))

    def build(self) -> TransformersBackbone:
        """The backbone, with random weights unless the config came with others."""
        return TransformersBackbone(self)


class TransformersBackbone(Backbone):
    """transformers' own module inside ours: padded to its coarsest stride, cropped back."""

    config: TransformersBackboneConfig
    own_prefixes = ("norms.", "net.hidden_states_norms.")

    def __init__(self, config: TransformersBackboneConfig) -> None:
        super().__init__(config)
        theirs = _their_config(config.model_type, _key(config.architecture))
        theirs.out_features = list(config.out_features or [])
        self.net: Any = _their_backbone(theirs)
        if config.freeze_norm:
            self.net = freeze_batch_norms(self.net)
        self.multiple = math.lcm(*(spec.stride for spec in config.stages))
        load_initial_weights(self)

    @property
    def has_attentions(self) -> bool:
        """See `Backbone.has_attentions`."""
        return bool(getattr(self.net, "has_attentions", False))

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BackboneOutput:
        """[B, 3, H, W] -> maps [B, C, ceil(H/stride), ceil(W/stride)].

        Hidden states and attentions are transformers' own, which differ from family to family in number and layout.

        Raises:
            ValueError: a model that is built for one image size only was given another; attentions where it has none.
        """
        if output_attentions and not self.has_attentions:
            self.refuse_attentions(f"transformers' {self.config.model_type} has none; leave it false")
        height, width = pixel_values.shape[-2:]
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        try:
            padded = pad_to_multiple(pixel_values, self.multiple)
            with _step_by_step(self.net) if output_attentions else nullcontext():
                outputs = self.net(pixel_values=padded, **{name: True for name, wanted in asked.items() if wanted})
        except (ValueError, RuntimeError) as error:  # transformers' own check, or shapes that do not go together
            if isinstance(error, RuntimeError) and "must match" not in str(error):
                raise
            name, reason = self.config.model_type, str(error).split("\n")[0]
            line = f"{name} takes no images of {height} x {width} pixels ({reason}); choose a model that takes any size"
            raise ValueError(line) from None
        attentions = outputs.attentions if output_attentions else None
        if output_attentions and not attentions:
            self.refuse_attentions(f"transformers' {self.config.model_type} keeps none; leave it false")
        maps = self.finish(list(outputs.feature_maps), (height, width)).feature_maps
        return BackboneOutput(maps, outputs.hidden_states if output_hidden_states else None, attentions)

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """transformers' layout -> ours; whatever this module has no place for is reported as not used."""
        own = set(self.state_dict())
        prefixes = ("", f"{getattr(self.net, 'base_model_prefix', '')}.")
        converted, not_built = {}, []
        for key, value in state.items():
            places = (f"net.{key.removeprefix(prefix)}" for prefix in prefixes)
            place = next((place for place in places if place in own), None)
            if place is None:
                not_built.append(key)
            else:
                converted[place] = value
        return converted, not_built


@contextlib.contextmanager
def _step_by_step(net: Any) -> Iterator[None]:
    """transformers' attention in single steps, the only way to keep the probabilities, instead of torch's fused one."""
    before = net.config._attn_implementation
    net.set_attn_implementation("eager")
    try:
        yield
    finally:
        net.set_attn_implementation(before)


def check_architecture(options: Mapping[str, Any], path: str = "architecture") -> None:
    """ConfigError for values that could only waste memory and time: absurd numbers, layers, lists, nesting."""
    waiting = [(f"{path}.{name}", value) for name, value in options.items()]
    while waiting:
        where, value = waiting.pop()
        layers = value if isinstance(value, list | tuple) else [value]
        if where.count(".") > 4 or (isinstance(value, list | tuple | dict) and len(value) > MAX_ENTRIES):
            raise ConfigError(f"{where}: larger than any backbone needs; at most {MAX_ENTRIES} entries, 3 levels")
        if isinstance(value, Mapping):
            waiting += [(f"{where}.{name}", item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(where, item) for item in value if not isinstance(item, list | tuple)]
        elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise ConfigError(f"{where}: {value!r:.20} is outside the allowed range -{MAX_NUMBER} to {MAX_NUMBER}")
        elif not (value is None or isinstance(value, str | int | float)):
            raise ConfigError(f"{where}: expected a number, a name or a list, got a {type(value).__name__}")
        counts = [n for n in layers if isinstance(n, int) and not isinstance(n, bool)]
        if _LAYER_COUNT.search(where.rpartition(".")[2]) and sum(counts) > MAX_LAYERS:
            raise ConfigError(f"{where}: {sum(counts)} layers are more than the {MAX_LAYERS} that are allowed")


def _key(architecture: Mapping[str, Any]) -> str:
    return json.dumps(architecture, sort_keys=True)


def _options(config: Any) -> set[str]:
    return set(config.to_dict()) - _EVERYWHERE


def _their_config(model_type: str, options: str) -> Any:
    """transformers' config of a backbone type; the type is looked up among names, never imported as given."""
    try:
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
    except ImportError:
        raise ConfigError(
            f"model_type: {model_type!r:.60} needs transformers; install it with `pip install vision-stack[hf]`"
        ) from None
    known = [name for name in MODEL_FOR_BACKBONE_MAPPING_NAMES if name not in _NOT_BACKBONES]
    if model_type not in known:
        close = get_close_matches(model_type, known, n=3) or known
        raise ConfigError(
            f"model_type: transformers has no backbone {model_type!r:.60}; choose one of {', '.join(close)}"
        )
    try:
        config = CONFIG_MAPPING[model_type](**json.loads(options))
    except Exception as error:  # its checks raise errors of several kinds
        raise ConfigError(f"architecture: refused by transformers' {model_type} ({_line(error)})") from None
    for name, value in vars(config).items():
        if isinstance(value, tuple):  # which several of its backbones add to lists
            setattr(config, name, list(value))
    return config


def _their_backbone(config: Any) -> Any:
    from transformers import AutoBackbone

    try:
        return AutoBackbone.from_config(config)
    except Exception as error:
        raise ConfigError(
            f"architecture: transformers cannot build this {config.model_type} ({_line(error)})"
        ) from None


@functools.cache
def _describe(model_type: str, options: str) -> tuple[FeatureSpec, ...]:
    """Every stage. transformers declares the channels but no strides: they are read off a run on the meta device."""
    config = _their_config(model_type, options)
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size[:2]
    specs: list[FeatureSpec] = []
    names = list(getattr(config, "stage_names", None) or [])
    if model_type == "maskformer-swin":
        names = names[1:]  # its backbone gives no stem
    config.out_features = names
    with on_meta(), torch.random.fork_rng(devices=[]):
        net = _their_backbone(config).eval()
        try:
            maps = net(pixel_values=torch.zeros(1, 3, height, width)).feature_maps
        except Exception as error:
            raise ConfigError(f"model_type: {model_type} gives no feature maps ({_line(error)})") from None
    if len(maps) != len(names):
        raise ConfigError(f"model_type: {model_type} gives {len(maps)} maps for {len(names)} stages")
    for name, x in zip(names, maps, strict=True):
        stride = round(height / x.shape[2]) if x.ndim == 4 else 0
        if not stride or tuple(x.shape[2:]) != (-(-height // stride), -(-width // stride)):
            raise ConfigError(f"model_type: {model_type} gives {name} as {list(x.shape)}, not a map of one stride")
        specs.append(FeatureSpec(name, x.shape[1], stride))
    return tuple(specs)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
