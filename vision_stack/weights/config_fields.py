"""Fields of transformers' config.json and options of ours that mean the same, by tables."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from vision_stack.config import ConfigError

Fields = tuple[tuple[str, str, Any], ...]  # theirs, ours, transformers' default
MAX_LAYERS = 200  # as many as none has; a file that says more is not worth building


def to_options(raw: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Our options for a config.json, in which a field that is left out has transformers' default."""
    return {ours: raw.get(theirs, default) for theirs, ours, default in fields}


def to_fields(options: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """The reverse of `to_options`."""
    return {theirs: options[ours] for theirs, ours, _ in fields}


def check_fixed(raw: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """ConfigError where a config.json has another value than the only one that is built here."""
    for name, value in fixed.items():
        if raw.get(name, value) != value:
            raise ConfigError(f"{name}: {raw[name]!r:.60} is not built here, only {value!r} is")


def check_same(options: Mapping[str, Any], theirs: Mapping[str, Any], part: str, model_type: str) -> None:
    """ConfigError where options of a part of ours are not what a model of transformers would be built with."""
    for name, value in theirs.items():
        if options[name] != value:
            raise ConfigError(f"{part}.{name}: transformers' {model_type} has {value!r}, not {options[name]!r}")


def warn_about_dropout(neck: Mapping[str, Any], head: Mapping[str, Any], model_type: str) -> None:
    """Say that a neck's dropout is lost, since transformers has one for both; outputs do not depend on it."""
    if neck.get("dropout", head["dropout"]) != head["dropout"]:
        warnings.warn(
            f"neck.dropout: transformers' {model_type} has one dropout for neck and head; {head['dropout']}, that of "
            "the head, is written",
            stacklevel=2,
        )


def check_layers(count: Any, least: int) -> int:
    """The same number of decoder layers; ConfigError where it is none."""
    if not isinstance(count, int) or not least <= count <= MAX_LAYERS:
        raise ConfigError(f"decoder_layers: expected a whole number from {least} to {MAX_LAYERS}, got {count!r:.40}")
    return count


def check_group_norms(neck: Mapping[str, Any]) -> None:
    """ConfigError where transformers' group norms, which have 32 groups, do not divide a neck's channels."""
    if neck["channels"] % 32:
        raise ConfigError(f"neck.channels: transformers' group norms need a multiple of 32, not {neck['channels']}")
