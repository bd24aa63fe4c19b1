"""RF-DETR as transformers writes it: config.json, and names of the decoder in its files, which are the authors'. The
projector's are in `scale_projector.py`, the backbone's in `windowed_dinov2.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import Fields, check_fixed, to_fields, to_options
from vision_stack.weights.encoder import state_of
from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs
from vision_stack.weights.scale_projector import (
    convert_scale_projector,
    export_scale_projector,
    neck_fields,
    neck_options,
)
from vision_stack.weights.windowed_dinov2 import export_windowed_dinov2

BACKBONE = "rf_detr_dinov2"
ENCODER = "backbone.0.encoder.encoder."  # of the backbone's names
HEADS = ("rf_detr", "rf_detr_seg")
_ARCHITECTURES = {False: "RfDetrForObjectDetection", True: "RfDetrForInstanceSegmentation"}  # by whether it has masks
_MASK_FIELDS: Fields = (("intermediate_size", "mask_ffn_dim", 1024),)
_MASK_LOSS: Fields = (
    ("mask_class_loss_coefficient", "mask_weight", 5.0),
    ("mask_dice_loss_coefficient", "dice_weight", 5.0),
    ("mask_point_sample_ratio", "cells_per_point", 16),
)
_MASK_COSTS: Fields = (  # which transformers takes from the same fields
    ("mask_class_loss_coefficient", "mask_cost", 5.0),
    ("mask_dice_loss_coefficient", "dice_cost", 5.0),
)
_FIXED_OF_MASKS = {"mask_downsample_ratio": 4, "segmentation_head_activation_function": "gelu"}
_NET, _PROJECTOR = "backbone.net.", "backbone.0.projector."
_IN_PROJ = "self_attn.in_proj_"  # query, key and value in one
_LAYER, _OURS = "transformer.decoder.layers.{i}.", "head.layers.{i}."

FIELDS: Fields = (  # theirs, ours, transformers' default; LW-DETR's, too
    ("num_queries", "num_queries", 300),
    ("d_model", "hidden_dim", 256),
    ("decoder_layers", "num_decoder_layers", 3),
    ("decoder_self_attention_heads", "num_heads", 8),
    ("decoder_cross_attention_heads", "cross_heads", 16),
    ("decoder_n_points", "num_points", 4),
    ("decoder_ffn_dim", "ffn_dim", 2048),
    ("group_detr", "num_groups", 13),
)
_FIELDS: Fields = (*FIELDS, ("dropout", "dropout", 0.1))
LOSS: Fields = (
    ("class_loss_coefficient", "class_weight", 1.0),
    ("bbox_loss_coefficient", "bbox_weight", 5.0),
    ("giou_loss_coefficient", "giou_weight", 2.0),
    ("class_cost", "class_cost", 2.0),
    ("bbox_cost", "bbox_cost", 5.0),
    ("giou_cost", "giou_cost", 2.0),
)
FIXED = {"decoder_activation_function": "relu", "attention_bias": True}
_FIXED = {**FIXED, "num_feature_levels": 1}

_NAMES: Names = (
    *(
        (f"segmentation_head.{theirs}.{{p}}", f"head.masks.{ours}.{{p}}")
        for theirs, ours in {
            "blocks.{i}.dwconv": "blocks.{i}.depthwise",
            "blocks.{i}.norm": "blocks.{i}.norm",
            "blocks.{i}.pwconv1": "blocks.{i}.pointwise",
            "spatial_features_proj": "projection",
            "query_features_block.norm_in": "query_norm",
            "query_features_block.layers.{i}": "query_mlp.{i}",
            "query_features_proj": "query_projection",
        }.items()
    ),
    ("segmentation_head.bias", "head.masks.bias"),
    ("refpoint_embed.weight", "head.reference_embed.weight"),
    ("query_feat.weight", "head.query_feat.weight"),
    ("class_embed.{p}", "head.class_embed.{p}"),
    ("bbox_embed.layers.{i}.{p}", "head.bbox_embed.layers.{i}.{p}"),
    ("transformer.decoder.norm.{p}", "head.decoder_norm.{p}"),
    ("transformer.decoder.ref_point_head.layers.{i}.{p}", "head.query_position.layers.{i}.{p}"),
    ("transformer.enc_output.{i}.{p}", "head.selections.{i}.output.{p}"),
    ("transformer.enc_output_norm.{i}.{p}", "head.selections.{i}.output_norm.{p}"),
    ("transformer.enc_out_class_embed.{i}.{p}", "head.selections.{i}.class_embed.{p}"),
    ("transformer.enc_out_bbox_embed.{i}.layers.{j}.{p}", "head.selections.{i}.bbox_embed.layers.{j}.{p}"),
    *((f"{_LAYER}{_IN_PROJ}{{p}}#{n}", f"{_OURS}self_attn.{x}_proj.{{p}}") for n, x in enumerate("qkv")),
    (f"{_LAYER}self_attn.out_proj.{{p}}", f"{_OURS}self_attn.out_proj.{{p}}"),
    *(
        (f"{_LAYER}cross_attn.{part}.{{p}}", f"{_OURS}cross_attn.{part}.{{p}}")
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    (f"{_LAYER}linear{{j}}.{{p}}", f"{_OURS}ffn.linear{{j}}.{{p}}"),
    (f"{_LAYER}norm1.{{p}}", f"{_OURS}self_attn_norm.{{p}}"),
    (f"{_LAYER}norm2.{{p}}", f"{_OURS}cross_attn_norm.{{p}}"),
    (f"{_LAYER}norm3.{{p}}", f"{_OURS}ffn_norm.{{p}}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    neck = {key: value for key, value in state.items() if key.startswith(_PROJECTOR)}
    rest = {key: value for key, value in state.items() if key not in neck}
    head = rename(split_part(rest, _IN_PROJ, 3), to_ours(_NAMES))
    return convert_scale_projector(neck, "rf_detr") | head


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, _FIXED)
    loss = {"class_loss": "ia_bce", **to_options(raw, LOSS)}
    head = {"type": "rf_detr", **to_options(raw, _FIELDS), "masks": False}
    if raw.get("architectures") == [_ARCHITECTURES[True]]:
        check_fixed(raw, _FIXED_OF_MASKS)
        head |= {"type": "rf_detr_seg", **to_options(raw, _MASK_FIELDS), "masks": True}
        loss |= to_options(raw, _MASK_LOSS) | to_options(raw, _MASK_COSTS)
    return neck_options(raw), {**head, "loss": loss}


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' RF-DETR does not have.
    """
    check_export(plain, "RF-DETR")
    neck, head = plain["neck"], plain["head"]
    module: Any = model.get_submodule("backbone")
    raw = {
        "model_type": "rf_detr",
        "architectures": [_ARCHITECTURES[head["masks"]]],
        **_FIXED,
        **neck_fields(neck, "rf_detr"),
        **to_fields(head, _FIELDS),
        **to_fields(head["loss"], LOSS),
        "backbone_config": module.config.to_config_json(),
    }
    if head["masks"]:
        raw |= _FIXED_OF_MASKS | to_fields(head, _MASK_FIELDS) | to_fields(head["loss"], _MASK_LOSS)
    encoder = {name.removeprefix(_NET): value for name, value in state_of(model, "backbone").items()}
    exported = {f"{ENCODER}{name}": value for name, value in export_windowed_dinov2(encoder).items()}
    exported |= export_scale_projector(state_of(model, "neck"), "rf_detr")
    return raw, exported | join_parts(rename(state_of(model, "head"), to_theirs(_NAMES)))


def check_export(plain: Mapping[str, Any], name: str) -> None:
    """ConfigError where RF-DETR or LW-DETR, as transformers has them, are built of other parts than these options."""
    if plain["head"]["loss"]["class_loss"] != "ia_bce":
        raise ConfigError(f"head.loss.class_loss: transformers' {name} has ia_bce only")
    if plain["neck"]["channels"] != plain["head"]["hidden_dim"]:
        raise ConfigError(f"neck.channels: transformers' {name} has as many as head.hidden_dim")
    if plain["backbone"]["out_norms"]:
        raise ConfigError(f"backbone.out_norms: transformers' {name} has no norms on the maps; train with false")
