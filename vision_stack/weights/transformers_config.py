"""config.json of transformers' MaskFormer and Mask2Former <-> the options of our necks and heads, as plain values.

Fields that a file leaves out have transformers' defaults. Values are checked by whoever decodes the result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vision_stack.config import ConfigError
from vision_stack.structures import Task
from vision_stack.weights import eomt, rf_detr
from vision_stack.weights.config_fields import Fields, check_fixed, to_fields, to_options
from vision_stack.weights.torchvision_detectors import HEADS as OF_TORCHVISION

ARCHITECTURES = {
    "maskformer": "MaskFormerForInstanceSegmentation",
    "mask2former": "Mask2FormerForUniversalSegmentation",
}
MAX_LAYERS = 200  # as many as none has; a file that says more is not worth building
OWN_KEY = "vision_stack"  # in a config.json that is written here: what transformers has no field for
OWN_FIELDS = ("task", "categories", "panoptic")
THINGS = {("panoptic", 133): 80}  # task, number of classes -> how many of them, the first, are things; else all are

_M2F_NECK: Fields = (
    ("feature_size", "channels", 256),
    ("mask_feature_size", "mask_channels", 256),
    ("encoder_layers", "num_encoder_layers", 6),
    ("num_attention_heads", "num_heads", 8),
    ("encoder_feedforward_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.0),
)
_M2F_HEAD: Fields = (
    ("num_queries", "num_queries", 100),
    ("hidden_dim", "hidden_dim", 256),
    ("enforce_input_projection", "enforce_input_projection", False),
    ("num_attention_heads", "num_heads", 8),
    ("dim_feedforward", "ffn_dim", 2048),
    ("dropout", "dropout", 0.0),
)
_M2F_LOSS: Fields = (
    ("class_weight", "class_weight", 2.0),
    ("mask_weight", "mask_weight", 5.0),
    ("dice_weight", "dice_weight", 5.0),
    ("no_object_weight", "no_object_weight", 0.1),
    ("train_num_points", "num_points", 12544),
    ("oversample_ratio", "oversample_ratio", 3.0),
    ("importance_sample_ratio", "importance_sample_ratio", 0.75),
)
_M2F_FIXED = {"pre_norm": False, "common_stride": 4, "feature_strides": [4, 8, 16, 32], "activation_function": "relu"}

_MF_NECK: Fields = (("fpn_feature_size", "channels", 256), ("mask_feature_size", "mask_channels", 256))
_MF_DECODER: Fields = (  # in `decoder_config`
    ("num_queries", "num_queries", 100),
    ("d_model", "hidden_dim", 256),
    ("decoder_layers", "num_decoder_layers", 6),
    ("decoder_attention_heads", "num_heads", 8),
    ("decoder_ffn_dim", "ffn_dim", 2048),
    ("dropout", "dropout", 0.1),
)
_MF_LOSS: Fields = (
    ("cross_entropy_weight", "class_weight", 1.0),
    ("mask_weight", "mask_weight", 20.0),
    ("dice_weight", "dice_weight", 1.0),
    ("no_object_weight", "no_object_weight", 0.1),
)
_MF_FIXED = {"model_type": "detr", "activation_function": "relu"}  # in `decoder_config`


class Parts(NamedTuple):
    """Plain options of a neck and a head."""

    neck: dict[str, Any]
    head: dict[str, Any]


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is transformers' and not ours."""
    return "model_type" in raw or "architectures" in raw


def to_parts(raw: Mapping[str, Any]) -> Parts:
    """Neck and head of a config.json.

    Raises:
        ConfigError: another model, or an option that is not built here; one line with the field.
    """
    name = raw.get("model_type")
    if name == "mask2former":
        check_fixed(raw, _M2F_FIXED)
        layers = raw.get("decoder_layers", 10)
        _check_layers(layers, least=2)
        return Parts(
            neck={"type": "ms_deform", **to_options(raw, _M2F_NECK)},
            head={
                "type": "mask2former",
                **to_options(raw, _M2F_HEAD),
                "num_decoder_layers": layers - 1,  # theirs counts the prediction before the first layer
                "loss": {"mask_loss": "point", **to_options(raw, _M2F_LOSS)},
            },
        )
    if name == "maskformer":
        decoder = raw.get("decoder_config") or {}
        if not isinstance(decoder, Mapping):
            raise ConfigError(f"decoder_config: expected a mapping, got a {type(decoder).__name__}")
        check_fixed(decoder, _MF_FIXED)
        _check_layers(decoder.get("decoder_layers", 6), least=1)
        loss = {"mask_loss": "focal", "class_cost": 1.0, **to_options(raw, _MF_LOSS)}
        return Parts(
            neck={"type": "pixel_decoder", **to_options(raw, _MF_NECK)},
            head={"type": "maskformer", **to_options(decoder, _MF_DECODER), "loss": loss},
        )
    if name in eomt.ARCHITECTURES:
        return Parts(neck={"type": "none"}, head=eomt.head_options(raw))
    if name == "rf_detr":
        return Parts(*rf_detr.parts_of(raw))
    raise ConfigError(
        f"model_type: {name!r:.60} is not loaded here; give a maskformer, a mask2former, an eomt or an rf_detr"
    )


def from_parts(parts: Parts, names: Sequence[str]) -> dict[str, Any]:
    """config.json of transformers for these parts, but for the backbone's; the reverse of `to_parts`.

    Raises:
        ConfigError: parts that transformers does not have.
    """
    neck, head = parts
    pair = (neck["type"], head["type"])
    if head["type"] not in ARCHITECTURES:
        instead = "; to-torchvision writes it for torchvision" if head["type"] in OF_TORCHVISION else ""
        raise ConfigError(
            f"head={head['type']}: transformers has no such model{instead}; to-transformers writes head=mask2former, "
            "maskformer, eomt and rf_detr"
        )
    if head["mask_feature_pos_embed"]:
        raise ConfigError(
            "head.mask_feature_pos_embed: transformers adds no positions to mask features; train with "
            "head.mask_feature_pos_embed=false"
        )
    labels = labels_of(names)
    if pair == ("ms_deform", "mask2former"):
        if neck["num_heads"] != head["num_heads"] or neck["num_points"] != 4:
            raise ConfigError("neck: transformers' Mask2Former has 4 points, and as many heads as its decoder")
        if head["num_levels"] < 3:
            raise ConfigError(f"head.num_levels: transformers' Mask2Former reads 3 levels, not {head['num_levels']}")
        return {
            **_header("mask2former"),
            **to_fields(neck, _M2F_NECK),
            **to_fields(head, _M2F_HEAD),
            **to_fields(head["loss"], _M2F_LOSS),
            "decoder_layers": head["num_decoder_layers"] + 1,
            **_M2F_FIXED,
            **labels,
        }
    if pair == ("pixel_decoder", "maskformer"):
        if neck["num_encoder_layers"]:
            raise ConfigError("neck.num_encoder_layers: transformers' MaskFormer has no encoder in its pixel decoder")
        return {
            **_header("maskformer"),
            **to_fields(neck, _MF_NECK),
            "decoder_config": {**_MF_FIXED, **to_fields(head, _MF_DECODER)},
            **to_fields(head["loss"], _MF_LOSS),
            **labels,
        }
    raise ConfigError(
        f"neck: transformers has no model with neck={pair[0]} and head={pair[1]}; it has ms_deform with mask2former, "
        "and pixel_decoder with maskformer"
    )


def labels_of(names: Sequence[str]) -> dict[str, Any]:
    """The fields that name the classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def class_names(raw: Mapping[str, Any]) -> list[str]:
    """Names of the classes by label; ConfigError unless the labels are 0, 1, ..."""
    id2label = raw.get("id2label")
    if id2label is None:
        count = raw.get("num_labels", 2)
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise ConfigError(f"num_labels: expected a number of classes, got {count!r:.40}")
        return [f"LABEL_{i}" for i in range(count)]
    if not isinstance(id2label, Mapping) or not id2label or not all(isinstance(n, str) for n in id2label.values()):
        raise ConfigError("id2label: expected a mapping from numbers to names")
    by_label = {str(label): name for label, name in id2label.items()}
    missing = next((i for i in range(len(by_label)) if str(i) not in by_label), None)
    if missing is not None:
        raise ConfigError(f"id2label: has {len(by_label)} classes but none numbered {missing}")
    return [by_label[str(i)] for i in range(len(by_label))]


def guess_task(source: str, architecture: str) -> Task:
    """Published configs do not say for which task they were trained; the names of published checkpoints do."""
    name = source.lower().rstrip("/").rpartition("/")[2]  # not the folders that it is in
    tasks: tuple[Task, ...] = ("instance", "panoptic", "semantic")
    for task in tasks:
        if task in name:
            return task
    if architecture == "maskformer" and re.search(r"maskformer-[\w-]*-(ade|coco-stuff|cityscapes|vistas)$", name):
        return "semantic"
    if architecture == "maskformer" and re.search(r"maskformer-[\w-]*-coco$", name):
        return "panoptic"
    return "instance"


def _header(name: str) -> dict[str, Any]:
    return {"model_type": name, "architectures": [ARCHITECTURES[name]]}


def _check_layers(count: Any, least: int) -> None:
    if not isinstance(count, int) or not least <= count <= MAX_LAYERS:
        raise ConfigError(f"decoder_layers: expected a whole number from {least} to {MAX_LAYERS}, got {count!r:.40}")
