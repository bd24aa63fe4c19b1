"""Writing a model as a directory that transformers' `from_pretrained` loads; transformers is not needed for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision_stack.config import Config, ConfigError, to_dict
from vision_stack.weights.architectures import architecture_for
from vision_stack.weights.files import WEIGHTS_FILE, save_tensors
from vision_stack.weights.transformers_config import OWN_FIELDS, OWN_KEY, labels_of


def export_transformers(model: nn.Module, config: Config, directory: Path) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Args:
        model: a `VisionModel`.
        config: its config.

    Raises:
        ConfigError: transformers has no model of these parts; the line says which it has.
    """
    plain = to_dict(config)
    names = [category["name"] for category in plain["categories"]]
    architecture = architecture_for(plain)
    if plain["head"].get("mask_feature_pos_embed"):
        raise ConfigError(
            "head.mask_feature_pos_embed: transformers adds no positions to mask features; train with "
            "head.mask_feature_pos_embed=false"
        )
    if plain["head"].get("masks") and not architecture.has_masks:
        raise ConfigError(
            f"head.masks: transformers' {plain['head']['type']} has none; to-transformers writes it if it was trained "
            "with head.masks=false, for task=detection"
        )
    raw, exported = architecture.export(model, plain)
    raw |= labels_of(names)
    raw[OWN_KEY] = {name: plain[name] for name in OWN_FIELDS}
    if "no_object_weight" in raw:
        class_weights = torch.ones(len(names) + 1)
        class_weights[-1] = raw["no_object_weight"]
        exported["criterion.empty_weight"] = class_weights
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(exported, directory / WEIGHTS_FILE)
    _write(directory / "config.json", raw)
    _write(directory / "preprocessor_config.json", _processor(architecture.processor, raw, model, plain))


def _processor(name: str, raw: Mapping[str, Any], model: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    size = plain["input_size"]
    own = {"size": {"shortest_edge": size["short_edge"], "longest_edge": size["long_edge"]}, "size_divisor": 32}
    if "image_size" in raw:  # of the square that images are padded to
        own = {"size": dict.fromkeys(("shortest_edge", "longest_edge"), raw["image_size"]), "do_pad": True}
    return {
        "image_processor_type": name,
        **own,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(x), 6) for x in model.image_mean.flatten()],
        "image_std": [round(float(x), 6) for x in model.image_std.flatten()],
    }


def _write(file: Path, raw: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
