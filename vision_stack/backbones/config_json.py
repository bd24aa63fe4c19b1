"""Reading a published `config.json`, transformers', timm's or ours: plain values in, a checked backbone config out.

Whatever the file says, nothing is imported, executed or opened on its behalf: a name in it chooses among names that are
known here. What it holds too much of, or of the wrong type, is one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from vision_stack.backbones.meta import on_meta
from vision_stack.config import ConfigError, from_dict, registered
from vision_stack.weights.files import read_json

MAX_ENTRIES = 256  # far beyond any published backbone
TIMM, TRANSFORMERS = "timm", "transformers"  # types
MAX_NUMBERS = 10_000_000_000  # the largest published backbone here, DINOv3's, has 6.7 billion


def read_backbone_config(path: Path, processor: Path | None = None) -> Any:
    """The backbone that a config.json describes; ConfigError names the file.

    `processor` is the preprocessor_config.json beside it, which has the mean and std of the weights.
    """
    raw = read_json(path)
    if processor is not None:
        beside = read_json(processor)
        raw |= {name: beside[name] for name in ("image_mean", "image_std") if beside.get(name) is not None}
    try:
        return decode_backbone(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for a config") from None


def config_class(name: str) -> Any:
    """The registered config of a type: those that make backbones import this file, not the other way round."""
    return registered("backbone")[name]


def transformers_families() -> dict[str, Any]:
    """transformers' `model_type` -> the registered config that reads its config.json; our `type` is the same."""
    configs = registered("backbone")
    return {name: c for name, c in configs.items() if hasattr(c, "from_transformers") and name != TRANSFORMERS}


def decode_backbone(raw: Mapping[str, Any]) -> Any:
    """A backbone config from a mapping of ours (`type`), of transformers (`model_type`) or of timm (`architecture`).

    Raises:
        ConfigError: none of the three, an unknown name, or options that are wrong.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"backbone: expected a mapping of options, got a {type(raw).__name__}")
    name = raw.get("model_type")
    if isinstance(raw.get("architecture"), str) and "type" not in raw and name in (None, "timm_wrapper"):
        return _timm_hub(raw)  # which may list the names of thousands of classes
    for key, value in raw.items():
        if isinstance(value, list) and len(value) > MAX_ENTRIES:
            raise ConfigError(f"{key!s:.60}: {len(value)} entries are more than a backbone needs, {MAX_ENTRIES}")
    if name == "timm_backbone":
        return _timm_backbone(raw)
    return _affordable(_by_architecture(raw))


def _by_architecture(raw: Mapping[str, Any]) -> Any:
    """What says its own architecture or names one of our types, in contrast to a model of timm by its name."""
    name = raw.get("model_type")
    if raw.get("type") == TRANSFORMERS and "architecture" not in raw:  # as it writes itself
        return config_class(TRANSFORMERS).from_transformers(raw)
    if "type" in raw and (name is None or raw["type"] == TRANSFORMERS):
        return from_dict(raw, "backbone")
    if name is None and isinstance(raw.get("backbone"), Mapping):
        raise ConfigError("model_type: missing; this is a whole model, which VisionModel.from_pretrained reads")
    if name is None:
        raise ConfigError(
            "model_type: missing; a transformers config has it, ours have `type` (timm, torchvision, ...) in its place"
        )
    if not isinstance(name, str):
        raise ConfigError(f"model_type: expected a name, got {name!r:.60}")
    if name in transformers_families():
        return transformers_families()[name].from_transformers(raw)
    if not name.replace("-", "_").isidentifier() or len(name) > 60:
        raise ConfigError(f"model_type: {name!r:.60} is not a model type; {_known_types()}")
    if isinstance(raw.get("backbone_config"), Mapping):
        raise ConfigError(f"model_type: {name} is a whole model, not a backbone; its `backbone_config` is the backbone")
    try:
        return config_class(TRANSFORMERS).from_transformers(raw)
    except ConfigError as error:
        if str(error).startswith("model_type: transformers has no"):
            close = get_close_matches(name, transformers_families(), n=1)
            advice = f"did you mean {close[0]!r}?" if close else _known_types()
            raise ConfigError(f"model_type: no backbone {name!r}; {advice}") from None
        raise


def _affordable(config: Any) -> Any:
    """The same config, unless its architecture has more weights than could be meant, none of which is allocated."""
    if not hasattr(config, "from_transformers"):
        return config
    with on_meta():
        backbone = config.build()
    count = sum(x.numel() for x in chain(backbone.parameters(), backbone.buffers()))
    if count > MAX_NUMBERS:
        raise ConfigError(
            f"model_type: this {getattr(config, 'model_type', config.type)} has {count / 1e9:,.0f} billion weights, "
            f"at most {MAX_NUMBERS / 1e9:.0f} are built from a config.json; give fewer or narrower layers"
        )
    return config


def _known_types() -> str:
    return (
        f"known are {', '.join(sorted(transformers_families()))}, and transformers' other backbones with the extra hf"
    )


def _timm_backbone(raw: Mapping[str, Any]) -> Any:
    """transformers' `TimmBackboneConfig`."""
    name = raw.get("backbone")
    if not isinstance(name, str):
        raise ConfigError(f"backbone: expected the name of a timm model, got {name!r:.60}")
    return config_class(TIMM)(
        name,
        out_indices=raw.get("out_indices"),
        output_stride=raw.get("output_stride"),
        freeze_norm=raw.get("freeze_batch_norm_2d", False),
        use_pretrained_backbone=bool(raw.get("use_pretrained_backbone", False)),
    )


def _timm_hub(raw: Mapping[str, Any]) -> Any:
    """The config.json of timm's own hub repositories: a name, a tag, and facts that timm has itself."""
    published = raw.get("pretrained_cfg")
    tag = published.get("tag") if isinstance(published, Mapping) else None
    name = raw["architecture"]
    return config_class(TIMM)(f"{name}.{tag}" if isinstance(tag, str) and tag else name)
