"""What the families have in common: architecture fields in transformers' words, modules and names of timm's.

A family is a config with the architecture open, which builds timm's class from it, and a backbone that walks through
that class stage by stage. Published weights come in transformers' layout or in timm's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from vision_stack.backbones.attentions import recording
from vision_stack.backbones.base import Backbone, BackboneConfigMixin, BackboneOutput, OutputNorms, pad_to_multiple
from vision_stack.backbones.pretrained import load_initial_weights
from vision_stack.config import ConfigError, Fraction, Positive, Range, from_dict
from vision_stack.structures import FeatureSpec

Width = Annotated[int, Range(1, 16_384)]
Pixels = Annotated[int, Range(1, 4096)]  # of a patch, or of the image that position tables are made for
Window = Annotated[int, Range(1, 64)]
Epsilon = Annotated[float, Range(0.0, 1.0)]
Ratio = Annotated[float, Range(0.1, 64.0)]  # of an MLP's hidden width to a layer's

_SQUARES = ("image_size", "patch_size", "window_size")  # transformers also takes (height, width)


@dataclass(kw_only=True)
class FamilyConfig(BackboneConfigMixin):
    """Base of the families' configs; stages are named "stem", "stage1", ..., and index 0 is the stem.

    Dropout inside layers, which none of the published models uses, is not an option here.
    """

    required: ClassVar[Mapping[str, Any]] = {"num_channels": 3}  # what transformers' config has to say, if it does

    image_mean: tuple[float, float, float] | None = None  # of RGB in [0, 1], as the weights want it; None: ImageNet's
    image_std: tuple[Positive, Positive, Positive] | None = None
    drop_path_rate: Fraction = 0.0  # stochastic depth of the deepest block, growing linearly from 0
    out_norms: bool = False  # a LayerNorm on each map

    @classmethod
    def from_transformers(cls, raw: Mapping[str, Any]) -> Self:
        """The config that a parsed `config.json` of transformers describes; other fields are ignored.

        Raises:
            ConfigError: one line with the field: wrong type, out of range, or an architecture that is not built here.
        """
        for name, value in cls.required.items():
            if raw.get(name, value) != value:
                raise ConfigError(f"{name}: {raw[name]!r} is not supported by type={cls.type}, only {value!r} is")
        fields = {field.name for field in dataclasses.fields(cls)}
        return from_dict({name: _plain(name, value) for name, value in raw.items() if name in fields}, cls=cls)

    def to_config_json(self) -> dict[str, Any]:
        """As transformers writes it, but for output norms that its models do not have: only we read those."""
        plain = self.to_dict()
        if not self.is_default("out_norms"):
            return plain
        return {"model_type": plain.pop("type"), **plain, **self.required, **self.transformers_fields()}

    def transformers_fields(self) -> dict[str, Any]:
        """Fields of transformers' config that follow from those here, or are written in another way."""
        return {}

    def is_default(self, name: str) -> bool:
        """Whether a field has the default value of its class, as if nobody had given it."""
        return bool(getattr(self, name) == type(self).__dataclass_fields__[name].default)

    def fit_lengths(self, **growth: int) -> None:
        """Let lists of one entry per stage that are at their defaults have as many entries as those that were given.

        Longer ones continue from the last entry, times what is given here. Like transformers, it reads no more entries
        of a list than there are stages.
        """
        counts = {len(getattr(self, name)) for name in growth if not self.is_default(name)}
        if len(counts) != 1:
            return
        (count,) = counts
        for name, factor in growth.items():
            values = getattr(self, name)
            if self.is_default(name):
                more = (values[-1] * factor ** (i + 1) for i in range(count - len(values)))
                setattr(self, name, (*values[:count], *more))

    def make_net(self) -> nn.Module:
        """timm's module, without classifier."""
        raise NotImplementedError

    def build(self) -> FamilyBackbone:
        """The backbone, with random weights unless the config came with others."""
        raise NotImplementedError


def _plain(name: str, value: Any) -> Any:
    if name in _SQUARES and isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value


def pyramid(stem: int, stem_stride: int, widths: tuple[int, ...]) -> tuple[FeatureSpec, ...]:
    """The stem and the stages of a hierarchical network: stage 1 keeps the stem's stride, each later one doubles it."""
    stages = (FeatureSpec(f"stage{i + 1}", width, stem_stride * 2**i) for i, width in enumerate(widths))
    return (FeatureSpec("stem", stem, stem_stride), *stages)


def same_length(**lists: tuple[Any, ...]) -> None:
    """ConfigError unless the options have one entry per stage each, and at least one."""
    (first, reference), *others = lists.items()
    if not reference:
        raise ConfigError(f"{first}: one entry per stage, at least one")
    for name, values in others:
        if len(values) != len(reference):
            raise ConfigError(f"{name}: {list(values)} and {first} {list(reference)} must have one entry per stage")


def default_heads(width: int, heads: int, channels: int, multiple: int = 1) -> int:
    """How many attention heads `width` channels have where nobody says: `heads`, if each gets a multiple of `multiple`.

    Otherwise at most so many that each has `channels` channels, as in the published models.
    """
    choices = (heads, math.gcd(width, max(1, width // channels)), 1)
    return next((count for count in choices if width % (count * multiple) == 0), heads)


class FamilyBackbone(Backbone):
    """The stages of a timm model, computed one after the other up to the last selected one."""

    config: FamilyConfig
    prefix: str  # of names in transformers' layout, where the model is part of another
    landmark: str  # a name that timm's layout has and transformers' has not
    unused = r"classifier\.|head\.|pooler\."  # start of names that either layout has beside the backbone's own
    to_timm: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]  # from transformers' layout
    norm_eps = 1e-5  # of the norms of the maps

    def __init__(self, config: FamilyConfig, *, multiple: int) -> None:
        """`multiple`: images are padded to multiples of it."""
        super().__init__(config)
        self.multiple = multiple
        self.net: Any = config.make_net()
        self.timm_names = frozenset(self.net.state_dict())  # of all stages, built here or not
        names = [stage.name for stage in config.stages]
        self.num_stages = names.index(self.out_specs[-1].name)  # besides the stem
        self.keep_stages(self.num_stages)
        self.norms = OutputNorms(self.out_specs, eps=self.norm_eps) if config.out_norms else None
        load_initial_weights(self)

    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first `count` from the network, and whatever follows the last."""
        raise NotImplementedError

    def run(self, x: Tensor) -> Iterator[Tensor]:
        """Padded pixels [B, 3, H, W] -> outputs of the stem, of stage 1, ...; each is computed when asked for."""
        raise NotImplementedError

    def final_norm(self, x: Tensor, spec: FeatureSpec) -> Tensor:
        """A stage's output -> the same with the network's own last norm, where that is applied to every map."""
        return x

    def to_map(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """A stage's output -> its NCHW map; size: height and width of the padded image."""
        return x

    def tokens(self, x: Tensor) -> Tensor | None:
        """The last stage's output -> its tokens [B, P + h * w, C], where that is what it is."""
        return None

    def attention_modules(self) -> list[nn.Module]:
        """Those of timm's attention modules whose probabilities `forward` gives on request, in order."""
        return []

    @property
    def has_attentions(self) -> bool:
        """See `Backbone.has_attentions`."""
        return bool(self.attention_modules())

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BackboneOutput:
        """[B, 3, H, W] -> maps [B, C, ceil(H/stride), ceil(W/stride)]; see `Backbone.forward`."""
        if not output_attentions:
            return self._forward(pixel_values, output_hidden_states)
        if not self.has_attentions:
            self.refuse_attentions()
        if self.gradient_checkpointing and torch.is_grad_enabled():
            self.refuse_attentions("gradient checkpointing keeps none; ask for them in torch.no_grad()")
        with recording(self.attention_modules()) as attentions:
            output = self._forward(pixel_values, output_hidden_states)
        return output._replace(attentions=tuple(attentions))

    def _forward(self, pixel_values: Tensor, output_hidden_states: bool) -> BackboneOutput:
        height, width = pixel_values.shape[-2:]
        padded = pad_to_multiple(pixel_values, self.multiple)
        size = (padded.shape[-2], padded.shape[-1])
        maps, hidden_states = [], []
        for spec, x in zip(self.config.stages[: self.num_stages + 1], self.run(padded), strict=False):
            if spec in self.out_specs:
                maps.append(self.to_map(self.final_norm(x, spec), size))
            if output_hidden_states:
                hidden_states.append(self.to_map(x, size))
        output = self.finish(maps, (height, width), hidden_states if output_hidden_states else None)
        return output._replace(tokens=self.tokens(x))

    def layer_groups(self) -> list[list[str]]:
        """timm's own grouping; see `FineTunable.layer_groups`."""
        grouped = group_parameters(self.net, self.net.group_matcher())
        return [[f"net.{name}" for name in grouped[i]] for i in sorted(grouped)]

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """transformers' layout or timm's -> ours; see `Backbone.convert_weights`."""
        own = set(self.state_dict())
        state = {name.removeprefix(f"{self.prefix}."): value for name, value in state.items()}
        not_built = [name for name in state if re.match(self.unused, name) and f"net.{name}" not in own]
        unused = set(not_built)
        state = {name: value for name, value in state.items() if name not in unused}
        norms = {name: state.pop(name) for name in list(state) if name.startswith("hidden_states_norms.")}
        if self.landmark not in state:
            state = type(self).to_timm(state)
        converted = {}
        for name, value in state.items():
            if name in self.timm_names and f"net.{name}" not in own:
                not_built.append(name)
            else:
                converted[f"net.{name}"] = value
        places = {f"hidden_states_norms.{spec.name}": f"norms.{i}" for i, spec in enumerate(self.out_specs)}
        for name, value in norms.items():
            norm, _, part = name.rpartition(".")
            if self.norms is None or norm not in places:
                not_built.append(name)
            else:
                converted[f"{places[norm]}.{part}"] = value
        return converted, not_built
