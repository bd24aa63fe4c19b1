"""What every backbone is: named stages to choose from, declared channels and strides, NCHW maps of any image size.

A config that derives from `BackboneConfigMixin` chooses its stages by name (`out_features`), by position
(`out_indices`) or by stride (`out_strides`); the three always agree, and setting one recomputes the others.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional as F

from vision_stack.backbones.finetuning import FineTunable
from vision_stack.backbones.hub import CONFIG_FILE, PublishedWeights
from vision_stack.backbones.names import config_from_pretrained
from vision_stack.backbones.stages import STAGE_FIELDS, select_stages
from vision_stack.config import ConfigError, to_dict
from vision_stack.ops.files import write_file
from vision_stack.structures import BackboneConfig, FeatureSpec, Tail, TailSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BackboneOutput(NamedTuple):
    """Feature maps of the selected stages, fine to coarse: [B, C, ceil(H/stride), ceil(W/stride)] each."""

    feature_maps: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    tokens: Tensor | None = None  # [B, P + h * w, C] after the last block, P of them no pixels; plain transformers only
    tail: Tail | None = None  # blocks that have not run, of a backbone that leaves them to the head


@dataclass(kw_only=True)
class BackboneConfigMixin(BackboneConfig):
    """Config of a backbone with stages to choose from; subclasses are `@dataclass(kw_only=True)` and say `stages`.

    The fields of the selection can be set later, one at a time, and are checked then; all other fields are fixed.
    Where none of the three is given, it is the last stage.

    `initial_weights` is not a field, so that nothing ever stores it: it is what `from_pretrained` and
    `use_pretrained_backbone`, which can be set, too, leave for the backbone that is built next (see
    `vision_stack.backbones.pretrained.load_initial_weights`).
    """

    initial_weights: ClassVar[Any] = False  # on an object: whatever `load_pretrained` takes
    tail: ClassVar[TailSpec | None] = None  # on an object: what the head of a model runs itself; see `with_tail`

    out_features: list[str] | None = None
    out_indices: list[int] | None = None
    out_strides: list[int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.out_features, tuple):
            raise ConfigError(f"out_features: expected a list of stage names, got {self.out_features!r}")
        super().__post_init__()
        self.select(self.out_features, self.out_indices, self.out_strides)
        self.__dict__["_fixed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_fixed" not in self.__dict__:
            object.__setattr__(self, name, value)
        elif name in STAGE_FIELDS:
            self.select(**{name: value})
        elif name == "use_pretrained_backbone":  # as transformers' configs have it
            self.__dict__["initial_weights"] = value
        else:
            raise dataclasses.FrozenInstanceError(f"{name} is fixed; make another {type(self).__name__} with it")

    @property
    def stages(self) -> tuple[FeatureSpec, ...]:
        """Every stage there is to choose from, fine to coarse; index 0 is the stem but for timm's own configs."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> Self:
        """The config of a published or saved model, with `options` in place of its own; see `AutoBackbone`.

        The backbone that is built from it starts from the weights of that model.
        """
        config = config_from_pretrained(name, **options)
        if not isinstance(config, cls):
            raise ConfigError(
                f"{name} is not a {cls.__name__} but a {type(config).__name__}; AutoBackbone takes either"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, `type` among them; `vision_stack.from_dict(..., "backbone")` takes them back."""
        return to_dict(self)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` into `directory`, for `from_pretrained` and, with weights beside it, `AutoBackbone`.

        Of models that transformers has, too, it is a config.json of transformers.
        """
        text = json.dumps(self.to_config_json(), indent=2) + "\n"
        write_file(Path(directory) / CONFIG_FILE, text.encode())

    def to_config_json(self) -> dict[str, Any]:
        """What `save_pretrained` writes: ours, with `type`, or transformers', with `model_type`."""
        return self.to_dict()

    def starting_from(self, initial_weights: Any) -> Self:
        """A copy whose backbone starts from these weights: True, "auto", False, a path or `PublishedWeights`."""
        return self._with("initial_weights", initial_weights)

    def _with(self, name: str, value: Any) -> Self:
        """A copy with something that is not a field, so that nothing ever stores it."""
        twin = copy.deepcopy(self)
        twin.__dict__[name] = value
        return twin

    def select(
        self,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        out_strides: Sequence[int] | None = None,
    ) -> None:
        """Choose the stages again (see `select_stages`); nothing changes where that fails."""
        self.__dict__.update(select_stages(self.stages, out_features, out_indices, out_strides)._asdict())

    @property
    def stage_names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    @property
    def num_features(self) -> list[int]:
        """Channels of every stage, selected or not."""
        return [stage.channels for stage in self.stages]

    @property
    def out_specs(self) -> tuple[FeatureSpec, ...]:
        """The selected stages."""
        stages = self.stages
        features, _, _ = select_stages(stages, self.out_features, self.out_indices, self.out_strides)
        return tuple(stage for stage in stages if stage.name in features)

    @property
    def channels(self) -> list[int]:
        """Channels of the selected stages."""
        return [spec.channels for spec in self.out_specs]


class BackboneMixin:
    """A backbone's stages in transformers' words, read off its config. What is built stays; choose on the config."""

    config: Any

    @property
    def backbone_type(self) -> Any:
        """transformers' `BackboneType`: TIMM where timm names the stages. Needs transformers (the extra hf)."""
        try:
            from transformers.backbone_utils import BackboneType
        except ImportError:
            raise ConfigError(
                "backbone_type: is transformers' own; install it with `pip install vision-stack[hf]`"
            ) from None
        return BackboneType.TIMM if self.config.type == "timm" else BackboneType.TRANSFORMERS

    @property
    def stage_names(self) -> list[str]:
        return self.config.stage_names

    @property
    def num_features(self) -> list[int]:
        """Channels of every stage, selected or not."""
        return self.config.num_features

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of every stage by name, selected or not."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def out_features(self) -> list[str]:
        return self.config.out_features

    @property
    def out_indices(self) -> list[int]:
        return self.config.out_indices

    @property
    def out_strides(self) -> list[int]:
        return self.config.out_strides


class Backbone(BackboneMixin, FineTunable):
    """Base of backbone modules: `out_specs` says what `forward` gives, before any tensor exists.

    Pixel values are normalised with `image_mean` and `image_std` (of RGB in [0, 1]), which belong to the weights.
    """

    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    published: PublishedWeights | None = None
    load_report: Any = None  # of the weights that it was built with, if any (`LoadReport`)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norms: OutputNorms | None = None  # not on the class, where it would hide a subclass's module
        self.config = copy.deepcopy(config)  # setting the caller's stages later does not change what was built
        self.out_specs: tuple[FeatureSpec, ...] = self.config.out_specs
        self.image_mean = getattr(config, "image_mean", None) or self.image_mean
        self.image_std = getattr(config, "image_std", None) or self.image_std

    @property
    def channels(self) -> list[int]:
        return [spec.channels for spec in self.out_specs]

    @property
    def has_attentions(self) -> bool:
        """Whether `forward` gives them on request."""
        return False

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> BackboneOutput:
        """[B, 3, H, W] -> one map per entry of `out_specs`.

        On request also, as `hidden_states`, the map of every stage up to the last selected one, before output norms,
        and, as `attentions`, the probabilities of transformers' model of the same kind, of the layers built here.

        Raises:
            ValueError: attentions of a backbone that has none, or keeps none.
        """
        raise NotImplementedError

    def refuse_attentions(self, reason: str = "") -> NoReturn:
        """Raise for `output_attentions`, which is never answered by None."""
        reason = reason or "it has no attention layers; leave it false"
        raise ValueError(f"output_attentions: {type(self).__name__} gives none: {reason}")

    def finish(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        hidden_states: Sequence[Tensor] | None = None,
        attentions: Sequence[Tensor] | None = None,
    ) -> BackboneOutput:
        """End of `forward`: NCHW maps of the padded image, cropped to the image's (height, width) and normalised."""
        maps = crop_to_image(maps, self.out_specs, size)
        maps = maps if self.norms is None else self.norms(maps)
        if hidden_states is not None:
            hidden_states = tuple(crop_to_image(hidden_states, self.config.stages[: len(hidden_states)], size))
        return BackboneOutput(tuple(maps), hidden_states, None if attentions is None else tuple(attentions))

    def convert_weights(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Published weights -> (weights under this module's own names, names of parts that are not built here).

        Not built are classifiers and stages after the last selected one. A name that the published model does not
        have either stays among the weights, so that strict loading reports it.
        """
        return dict(state), []


class OutputNorms(nn.ModuleList):
    """A LayerNorm over the channels of each map, as detectron2's and transformers' Swin have them."""

    def __init__(self, specs: Sequence[FeatureSpec], eps: float = 1e-5) -> None:
        super().__init__(nn.LayerNorm(spec.channels, eps=eps) for spec in specs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self, maps, strict=True)]


def pad_to_multiple(pixel_values: Tensor, multiple: int) -> Tensor:
    """Zeros to the right and below, until height and width are multiples."""
    height, width = pixel_values.shape[-2:]
    right, below = -width % multiple, -height % multiple
    return F.pad(pixel_values, (0, right, 0, below)) if right or below else pixel_values


def crop_to_image(maps: Sequence[Tensor], specs: Sequence[FeatureSpec], size: tuple[int, int]) -> list[Tensor]:
    """The part of each map that belongs to an image of `size` = (height, width): ceil(size / stride)."""
    cropped = []
    for x, spec in zip(maps, specs, strict=True):
        height, width = -(-size[0] // spec.stride), -(-size[1] // spec.stride)
        true_spec = x.shape[1] == spec.channels and x.shape[2] >= height and x.shape[3] >= width
        assert true_spec, f"map {tuple(x.shape)} of an image {size} is not {spec}"
        cropped.append(x if x.shape[2:] == (height, width) else x[:, :, :height, :width])
    return cropped


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """Every BatchNorm2d becomes a fixed scale and shift, which `.train()` does not unfreeze."""
    return freeze_batch_norm_2d(module)
