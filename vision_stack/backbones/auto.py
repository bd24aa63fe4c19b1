"""Backbones by name or by config, in the words of transformers' guide: `AutoBackbone`, `list_backbones`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from vision_stack.backbones.base import Backbone
from vision_stack.backbones.config_json import decode_backbone
from vision_stack.backbones.listing import matches
from vision_stack.backbones.names import config_from_pretrained, named_backbones
from vision_stack.backbones.pretrained import load_initial_weights
from vision_stack.config import ConfigError
from vision_stack.structures import BackboneConfig


class AutoBackbone:
    """Gives the backbone that a name or a config means; never made itself."""

    def __init__(self) -> None:
        raise TypeError("AutoBackbone is not a module; call AutoBackbone.from_pretrained or AutoBackbone.from_config")

    @staticmethod
    def from_pretrained(name: str | Path, **options: Any) -> Backbone:
        """A backbone with its published weights, in eval mode; takes processed pixels [B, 3, H, W].

            AutoBackbone.from_pretrained("microsoft/swin-tiny-patch4-window7-224", out_indices=(0, 1, 2))

        Args:
            name: a directory with config.json and weights, one of ours ("swin_tiny"), a timm name, or a hub id.
            options: `out_features`, `out_indices` or `out_strides`; `use_timm_backbone=True` to mean timm's model of
                that name; `use_pretrained_backbone=False` for random weights; and any field of the config.

        Raises:
            ConfigError: unknown name or option, or weights that cannot be had or do not fit; one line.
        """
        return AutoBackbone.from_config(config_from_pretrained(name, **options)).eval()

    @staticmethod
    def from_config(config: BackboneConfig | Mapping[str, Any]) -> Backbone:
        """The backbone of a config, or of a mapping of ours (`type`) or of transformers (`model_type`).

        Its weights are random, unless the config was made with `from_pretrained` or `use_pretrained_backbone`.
        """
        return load_initial_weights(as_backbone_config(config).build())


def as_backbone_config(config: Any) -> Any:
    """A backbone config as it is, or decoded from a mapping.

    Raises:
        ConfigError: neither of the two, or a mapping that describes no backbone.
    """
    if isinstance(config, BackboneConfig):
        return config
    if isinstance(config, Mapping):
        return decode_backbone(config)
    if callable(getattr(config, "to_dict", None)) and hasattr(config, "model_type"):  # an object of transformers'
        return decode_backbone(config.to_dict())
    raise ConfigError(
        f"backbone_config: expected a backbone config or a mapping, got a {type(config).__name__}; "
        "for a name there is AutoBackbone.from_pretrained, or MaskFormerConfig(backbone=...)"
    )


def list_backbones(pattern: str = "", *, timm_models: bool = False) -> list[str]:
    """Names that `AutoBackbone.from_pretrained` takes, ours and, on request, timm's.

    Those that `pattern` is a part of, or, where it has a `*`, that match it as in a shell.
    """
    names = [*named_backbones(), *(timm.list_models() if timm_models else [])]
    return sorted({name for name in names if matches(pattern, name)})
