"""Initial weights of a backbone: from a file, the local caches or the hub, and a report of what was loaded.

report = load_pretrained(backbone, config.backbone, "auto")
print(report)            # one line
print(report.details())  # every name that was not simply taken over
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from vision_stack.backbones.base import Backbone
from vision_stack.backbones.hub import PublishedWeights, published_file
from vision_stack.config import ConfigError
from vision_stack.structures import BackboneConfig
from vision_stack.weights.checks import check_finite, faults_of, misfit_of
from vision_stack.weights.files import find_weights_file, read_tensors

Pretrained = Literal["auto"] | bool | str | PublishedWeights
B = TypeVar("B", bound=Backbone)


class RandomWeightsWarning(UserWarning):
    """A backbone was to start from published weights and starts from random ones."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of the weights. Names are the backbone's own but for `unexpected` and `not_built`."""

    source: str  # a path, an address, or "random weights"
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # in the backbone, not in the source: empty, for loading is strict
    unexpected: tuple[str, ...] = ()  # in the source, unknown to the model: empty, likewise
    reshaped: tuple[str, ...] = ()  # resampled or regrouped, such as position tables, or query, key and value
    not_built: tuple[str, ...] = ()  # in the source, but of the classifier or of stages that are not used
    fresh: tuple[str, ...] = ()  # of layers that published weights never have, such as output norms
    warning: str | None = None  # why the weights are random although published ones were asked for

    def __str__(self) -> str:
        if not self.matched:
            return f"{self.source} ({self.warning})" if self.warning else self.source
        counts = {"matched": self.matched, "missing": self.missing, "unexpected": self.unexpected}
        rest = {"reshaped": self.reshaped, "new here": self.fresh, "not used": self.not_built}
        counts |= {name: keys for name, keys in rest.items() if keys}
        return f"{self.source}: " + ", ".join(f"{len(keys)} {name}" for name, keys in counts.items())

    def details(self) -> str:
        """Every name that was not simply taken over, by what became of it."""
        groups = ("missing", "unexpected", "reshaped", "fresh", "not_built")
        rows = [f"{group:<10}  {name}" for group in groups for name in getattr(self, group)]
        return "\n".join([f"{'source':<10}  {self.source}", f"{'matched':<10}  {len(self.matched)} tensors", *rows])


def load_initial_weights(backbone: B) -> B:
    """The same backbone, with the weights that its config was given in Python (`config.initial_weights`), if any.

    What was loaded is printed to stderr and kept as `backbone.load_report`.

    Raises:
        ConfigError: as `load_pretrained`.
    """
    wanted = getattr(getattr(backbone, "config", None), "initial_weights", False)
    loaded = getattr(backbone, "load_report", None) is not None
    if wanted is not False and not loaded and not any(p.is_meta for p in backbone.parameters()):
        backbone.load_report = load_pretrained(backbone, backbone.config, wanted, option="use_pretrained_backbone")
        print(f"{_name(backbone.config)}: {backbone.load_report}", file=sys.stderr)
    return backbone


def load_pretrained(
    backbone: Backbone, config: BackboneConfig, pretrained: Pretrained, *, option: str = "backbone.pretrained"
) -> LoadReport:
    """Load initial weights into `backbone`, in place.

    Args:
        backbone: what `config.build()` gave.
        config: names the model in messages.
        pretrained: "auto": the published weights, from the caches or the network, or random ones with a
            `RandomWeightsWarning`. True: the published weights. False: keep the random ones. Else where others
            are published, or the path of a `.safetensors`, `.pth` or `.bin` file, or of a directory with one, in the
            layout of the published weights.
        option: what the user calls this choice, for messages.

    Raises:
        ConfigError: the weights were asked for and cannot be had, or do not fit; one line that says what would work.
    """
    mean, std = tuple(backbone.image_mean), tuple(backbone.image_std)
    if pretrained is False:
        return LoadReport(source="random weights", image_mean=mean, image_std=std)
    try:
        if isinstance(pretrained, PublishedWeights):
            path, source = published_file(pretrained, option)
        elif pretrained in (True, "auto"):
            path, source = published_file(backbone.published, option)
        else:
            path = find_weights_file(str(pretrained))
            source = str(path)
        return _load(backbone, read_tensors(path), source)
    except ConfigError as error:
        name = _name(config)
        if pretrained != "auto":
            raise ConfigError(f"{option}: {name}: {error}") from None
        reason = f"no published weights of {name}: {error}"
        warnings.warn(f"THE BACKBONE STARTS FROM RANDOM WEIGHTS: {reason}", RandomWeightsWarning, stacklevel=2)
        return LoadReport(source="random weights", image_mean=mean, image_std=std, warning=reason)


def _name(config: BackboneConfig) -> str:
    return getattr(config, "model_name", config.type)


def _load(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> LoadReport:
    own = backbone.state_dict()
    try:
        converted, not_built = backbone.convert_weights(state)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:  # from code that met an unknown layout
        raise ConfigError(f"{source} is not a weights file of this model ({type(error).__name__}: {error})") from None
    counters = {name for name in own.keys() | converted.keys() if name.endswith(".num_batches_tracked")}
    fresh = tuple(name for name in own if name.startswith(backbone.own_prefixes) and name not in converted)
    missing = tuple(name for name in own if name not in converted and name not in fresh and name not in counters)
    unexpected = tuple(name for name in converted if name not in own and name not in counters)
    matched = {name: value for name, value in converted.items() if name in own}
    misfit = {name: reason for name, value in matched.items() if (reason := misfit_of(value, own[name]))}
    if missing or unexpected or misfit:
        problems = [_count(missing, "missing"), _count(unexpected, "unexpected")]
        problems += [f"{len(misfit)} of another kind (e.g. {name}: {reason})" for name, reason in misfit.items()][:1]
        raise ConfigError(
            f"{source} does not fit: {', '.join(filter(None, problems))}; "
            "give weights of this very model, in the layout it is published in"
        )
    with faults_of(source):
        check_finite(matched)
    shapes = {tuple(value.shape) for value in state.values()}  # a shape that the source has nowhere was made from it
    backbone.load_state_dict(matched, strict=False)
    return LoadReport(
        source=source,
        matched=tuple(matched),
        reshaped=tuple(
            name
            for name, value in matched.items()
            if tuple(value.shape) not in shapes and ".qkv." not in name  # query, key and value are joined as they are
        ),
        not_built=tuple(not_built),
        fresh=fresh,
        image_mean=tuple(backbone.image_mean),
        image_std=tuple(backbone.image_std),
    )


def _count(names: Iterable[str], what: str) -> str:
    names = list(names)
    return f"{len(names)} tensors {what} (e.g. {names[0]})" if names else ""
