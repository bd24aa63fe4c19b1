"""transformers' Mask2Former (`Mask2FormerForUniversalSegmentation`), and so the checkpoints published in its format, as
the `ms_deform` neck and the `mask2former` head: config.json and names of tensors, both ways. The backbone has names of
its own.

Fields that a config.json leaves out have transformers' defaults. Values are checked by whoever decodes the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import (
    Fields,
    check_fixed,
    check_group_norms,
    check_layers,
    to_fields,
    to_options,
)
from vision_stack.weights.encoder import ENCODER, UNUSED, export_backbone, state_of
from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

_PIXEL = "model.pixel_level_module.decoder."
_PIXEL_LAYER = f"{_PIXEL}encoder.layers.{{i}}."
_DECODER = "model.transformer_module."
_LAYER = f"{_DECODER}decoder.layers.{{i}}."
_CROSS = "cross_attn.in_proj_"  # query, key and value in one

_NECK: Fields = (
    ("feature_size", "channels", 256),
    ("mask_feature_size", "mask_channels", 256),
    ("encoder_layers", "num_encoder_layers", 6),
    ("num_attention_heads", "num_heads", 8),
    ("encoder_feedforward_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.0),
)
_HEAD: Fields = (
    ("num_queries", "num_queries", 100),
    ("hidden_dim", "hidden_dim", 256),
    ("enforce_input_projection", "enforce_input_projection", False),
    ("num_attention_heads", "num_heads", 8),
    ("dim_feedforward", "ffn_dim", 2048),
    ("dropout", "dropout", 0.0),
)
LOSS: Fields = (  # EoMT's, too
    ("class_weight", "class_weight", 2.0),
    ("mask_weight", "mask_weight", 5.0),
    ("dice_weight", "dice_weight", 5.0),
    ("no_object_weight", "no_object_weight", 0.1),
    ("train_num_points", "num_points", 12544),
    ("oversample_ratio", "oversample_ratio", 3.0),
    ("importance_sample_ratio", "importance_sample_ratio", 0.75),
)
_FIXED = {"pre_norm": False, "common_stride": 4, "feature_strides": [4, 8, 16, 32], "activation_function": "relu"}

_NAMES: Names = (
    (f"{_PIXEL}level_embed", "neck.level_embed.weight"),
    (f"{_PIXEL}input_projections.{{i}}.0.{{p}}", "neck.input_projections.{i}.conv.{p}"),
    (f"{_PIXEL}input_projections.{{i}}.1.{{p}}", "neck.input_projections.{i}.norm.{p}"),
    (f"{_PIXEL}adapter_1.0.{{p}}", "neck.lateral.conv.{p}"),
    (f"{_PIXEL}adapter_1.1.{{p}}", "neck.lateral.norm.{p}"),
    (f"{_PIXEL}layer_1.0.{{p}}", "neck.output.conv.{p}"),
    (f"{_PIXEL}layer_1.1.{{p}}", "neck.output.norm.{p}"),
    (f"{_PIXEL}mask_projection.{{p}}", "neck.mask_projection.{p}"),
    *(
        (f"{_PIXEL_LAYER}self_attn.{part}.{{p}}", f"neck.layers.{{i}}.attn.{part}.{{p}}")
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    (f"{_PIXEL_LAYER}self_attn_layer_norm.{{p}}", "neck.layers.{i}.attn_norm.{p}"),
    (f"{_PIXEL_LAYER}fc{{j}}.{{p}}", "neck.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_PIXEL_LAYER}final_layer_norm.{{p}}", "neck.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}queries_embedder.weight", "head.query_embed.weight"),
    (f"{_DECODER}queries_features.weight", "head.query_feat.weight"),
    (f"{_DECODER}level_embed.weight", "head.level_embed.weight"),
    (f"{_DECODER}input_projections.{{i}}.{{p}}", "head.input_projections.{i}.{p}"),
    *(
        (f"{_LAYER}self_attn.{part}_proj.{{p}}", f"head.layers.{{i}}.self_attn.{part}_proj.{{p}}")
        for part in ("q", "k", "v", "out")
    ),
    *(
        (f"{_LAYER}{_CROSS}{{p}}#{number}", f"head.layers.{{i}}.cross_attn.{part}_proj.{{p}}")
        for number, part in enumerate("qkv")
    ),
    (f"{_LAYER}cross_attn.out_proj.{{p}}", "head.layers.{i}.cross_attn.out_proj.{p}"),
    (f"{_LAYER}self_attn_layer_norm.{{p}}", "head.layers.{i}.self_attn_norm.{p}"),
    (f"{_LAYER}cross_attn_layer_norm.{{p}}", "head.layers.{i}.cross_attn_norm.{p}"),
    (f"{_LAYER}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_LAYER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}decoder.layernorm.{{p}}", "head.decoder_norm.{p}"),
    (f"{_DECODER}decoder.mask_predictor.mask_embedder.{{i}}.0.{{p}}", "head.mask_embed.layers.{i}.{p}"),
    ("class_predictor.{p}", "head.class_embed.{p}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' Mask2Former, as its files have it, without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(split_part(state, _CROSS, 3), (*to_ours(_NAMES), UNUSED))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`."""
    return join_parts(rename(state, to_theirs(_NAMES)))


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, _FIXED)
    layers = check_layers(raw.get("decoder_layers", 10), least=2)
    return {"type": "ms_deform", **to_options(raw, _NECK)}, {
        "type": "mask2former",
        **to_options(raw, _HEAD),
        "num_decoder_layers": layers - 1,  # theirs counts the prediction before the first layer
        "loss": {"mask_loss": "point", **to_options(raw, LOSS)},
    }


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' Mask2Former does not have.
    """
    neck, head = plain["neck"], plain["head"]
    if neck["num_heads"] != head["num_heads"] or neck["num_points"] != 4:
        raise ConfigError("neck: transformers' Mask2Former has 4 points, and as many heads as its decoder")
    if head["num_levels"] < 3:
        raise ConfigError(f"head.num_levels: transformers' Mask2Former reads 3 levels, not {head['num_levels']}")
    check_group_norms(neck)
    backbone, encoder = export_backbone(model, plain, finest=4)
    raw = {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        **to_fields(neck, _NECK),
        **to_fields(head, _HEAD),
        **to_fields(head["loss"], LOSS),
        "decoder_layers": head["num_decoder_layers"] + 1,
        **_FIXED,
        "backbone_config": backbone,
    }
    exported = {f"{ENCODER}{name}": tensor for name, tensor in encoder.items()}
    return raw, exported | export_decoder(state_of(model, "neck", "head"))
