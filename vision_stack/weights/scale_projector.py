"""The projector of transformers' RF-DETR and LW-DETR, and so of the checkpoints published in their format, as
`neck=scale_projector`: config.json and names of tensors, both ways. Heads and backbones have files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vision_stack.weights.config_fields import Fields, check_fixed, check_same, to_fields, to_options
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_FIELDS: Fields = (
    ("d_model", "channels", 256),
    ("c2f_num_blocks", "num_blocks", 3),
    ("hidden_expansion", "expansion", 0.5),
)
_OF_RF_DETR: Fields = (("layer_norm_eps", "layer_norm_eps", 1e-5),)
_OF_LW_DETR: Fields = (("projector_scale_factors", "scales", ()),)
_FIXED = {"activation_function": "silu"}


def neck_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options of the neck of a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, _FIXED)
    options = {"type": "scale_projector", **to_options(raw, _FIELDS)}
    if raw["model_type"] == "rf_detr":
        return {**options, **to_options(raw, _OF_RF_DETR), "norm": "layer", "scales": [1.0]}
    check_fixed(raw, {"batch_norm_eps": 1e-5})
    return {**options, **to_options(raw, _OF_LW_DETR), "norm": "batch"}


def neck_fields(neck: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The reverse of `neck_options`.

    Raises:
        ConfigError: a neck that the models of this type do not have.
    """
    own = to_fields(neck, (*_FIELDS, *(_OF_RF_DETR if model_type == "rf_detr" else _OF_LW_DETR)))
    check_same(neck, neck_options({**own, "model_type": model_type}), "neck", model_type)
    return {**_FIXED, **own}


def _c2f(theirs: str, ours: str, first: str, second: str, blocks: str, norm: str) -> Names:
    places = (
        (f"{theirs}.{first}", f"{ours}.split"),
        (f"{theirs}.{second}", f"{ours}.merge"),
        (f"{theirs}.{blocks}.{{j}}.{first}", f"{ours}.blocks.{{j}}.0"),
        (f"{theirs}.{blocks}.{{j}}.{second}", f"{ours}.blocks.{{j}}.1"),
    )
    return tuple(
        (f"{a}.{part}.{{p}}", f"{b}.{own}.{{p}}") for a, b in places for part, own in (("conv", "conv"), (norm, "norm"))
    )


def _in_memory(theirs: str, ours: str) -> Names:
    return (
        *_c2f(f"{theirs}.projector_layer", f"{ours}.block", "conv1", "conv2", "bottlenecks", "norm"),
        (f"{theirs}.layer_norm.{{p}}", f"{ours}.norm.{{p}}"),
    )


def _lw_detr(level: int) -> Names:
    theirs, ours = f"model.backbone.projector.scale_layers.{level}", f"neck.levels.{level}"
    return (
        *_in_memory(theirs, ours),
        (f"{theirs}.sampling_layers.{{i}}.layers.{{j}}.{{p}}", f"{ours}.sampling.{{i}}.{{j}}.{{p}}"),
        *(
            (f"{theirs}.sampling_layers.{{i}}.layers.{{j}}.{part}.{{p}}", f"{ours}.sampling.{{i}}.{{j}}.{part}.{{p}}")
            for part in ("conv", "norm")
        ),
    )


# By transformers' `model_type`. RF-DETR's files have the names of its authors, which come first; in memory they differ.
_NAMES: dict[str, Names] = {
    "rf_detr": (
        *_c2f("backbone.0.projector.stages.0.0", "neck.levels.0.block", "cv1", "cv2", "m", "bn"),
        ("backbone.0.projector.stages.0.1.{p}", "neck.levels.0.norm.{p}"),
        *_in_memory("model.backbone.projector", "neck.levels.0"),
    ),
    "lw_detr": tuple(pair for level in range(3) for pair in _lw_detr(level)),
}


def convert_scale_projector(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The projector's part of a state dict of transformers', with its whole names -> `neck.` and ours.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(state, to_ours(_NAMES[model_type]))


def export_scale_projector(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The reverse of `convert_scale_projector`, with the names of files."""
    return rename(state, to_theirs(_NAMES[model_type]))
