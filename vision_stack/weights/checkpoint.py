"""Checkpoints of training: tensors and plain values, told apart by a format version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_stack.config import ConfigError
from vision_stack.weights.checks import check_tensors, faults_of
from vision_stack.weights.files import read_plain

FORMAT_VERSION = 1
_NEEDED = ("model_config", "state_dict")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The plain contents of a training checkpoint, loaded with `weights_only=True`.

    Raises:
        ConfigError: no such file, damaged, not a checkpoint of ours, of a later format, or one that holds more than
            tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such checkpoint; give a .ckpt file, the folder of a run or of a saved model, or a Hub id, "
            "as in facebook/mask2former-swin-tiny-coco-instance"
        )
    if path.name.endswith((".json", ".safetensors")):
        raise ConfigError(f"{path}: is one file of a model; give the directory, {path.parent}, or a .ckpt file")
    checkpoint = read_plain(path)
    with faults_of(path):
        _check_layout(checkpoint)
    return checkpoint


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The `VisionModel`'s share of a training checkpoint's state dict."""
    prefix = "model."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def _check_layout(checkpoint: Any) -> None:
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(name), Mapping) for name in _NEEDED):
        raise ConfigError(
            "has no 'model_config' and 'state_dict'; give a checkpoint that train.py wrote (weights of only a "
            "backbone: backbone.pretrained=PATH)"
        )
    version = checkpoint.get("format_version")
    if type(version) is not int or version < 1:
        found = version if type(version) is int else "none" if version is None else f"a {type(version).__name__}"
        raise ConfigError(
            f"format_version: expected a whole number from 1, got {found}; give a checkpoint that train.py wrote"
        )
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"format_version: {version!s:.20} is newer than {FORMAT_VERSION}, the newest known; update vision_stack"
        )
    if not isinstance(checkpoint.get("run_config", {}), Mapping):
        raise ConfigError(f"run_config: expected options, got a {type(checkpoint['run_config']).__name__}")
    check_tensors(checkpoint["state_dict"])
