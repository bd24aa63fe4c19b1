"""LW-DETR as transformers writes it: config.json, and names of the decoder in its files. Head and projector are
RF-DETR's with other options. The projector's names are in `scale_projector.py`, the backbone's in `lw_detr_vit.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vision_stack.weights.config_fields import Fields, check_fixed, to_fields, to_options
from vision_stack.weights.encoder import state_of
from vision_stack.weights.lw_detr_vit import export_lw_detr_vit
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs
from vision_stack.weights.rf_detr import FIELDS, FIXED, LOSS, check_export
from vision_stack.weights.scale_projector import (
    convert_scale_projector,
    export_scale_projector,
    neck_fields,
    neck_options,
)

BACKBONE = "lw_detr_vit"
ENCODER = "model.backbone.backbone."  # of the backbone's names
_NET, _PROJECTOR = "backbone.net.", "model.backbone.projector."
_LAYER, _OURS = "model.decoder.layers.{i}.", "head.layers.{i}."
_FIELDS: Fields = (*FIELDS, ("dropout", "dropout", 0.0))
_OLD_CLASS_WEIGHT = "mask_loss_coefficient"  # its name in transformers before 5.3
_PARTS = {  # of a decoder layer
    "self_attn.o_proj": "self_attn.out_proj",
    **{f"self_attn.{x}_proj": f"self_attn.{x}_proj" for x in "qkv"},
    "self_attn_layer_norm": "self_attn_norm",
    **{
        f"cross_attn.{part}": f"cross_attn.{part}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    },
    "cross_attn_layer_norm": "cross_attn_norm",
    "mlp.fc1": "ffn.linear1",
    "mlp.fc2": "ffn.linear2",
    "layer_norm": "ffn_norm",
}
_NAMES: Names = (
    ("model.reference_point_embed.weight", "head.reference_embed.weight"),
    ("model.query_feat.weight", "head.query_feat.weight"),
    ("class_embed.{p}", "head.class_embed.{p}"),
    ("bbox_embed.layers.{i}.{p}", "head.bbox_embed.layers.{i}.{p}"),
    ("model.decoder.layernorm.{p}", "head.decoder_norm.{p}"),
    ("model.decoder.ref_point_head.layers.{i}.{p}", "head.query_position.layers.{i}.{p}"),
    ("model.enc_output.{i}.{p}", "head.selections.{i}.output.{p}"),
    ("model.enc_output_norm.{i}.{p}", "head.selections.{i}.output_norm.{p}"),
    ("model.enc_out_class_embed.{i}.{p}", "head.selections.{i}.class_embed.{p}"),
    ("model.enc_out_bbox_embed.{i}.layers.{j}.{p}", "head.selections.{i}.bbox_embed.layers.{j}.{p}"),
    *((f"{_LAYER}{theirs}.{{p}}", f"{_OURS}{ours}.{{p}}") for theirs, ours in _PARTS.items()),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    neck = {key: value for key, value in state.items() if key.startswith(_PROJECTOR)}
    head = {key: value for key, value in state.items() if key not in neck}
    return convert_scale_projector(neck, "lw_detr") | rename(head, to_ours(_NAMES))


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, FIXED)
    if _OLD_CLASS_WEIGHT in raw:
        raw = {**raw, "class_loss_coefficient": raw[_OLD_CLASS_WEIGHT]}
    loss = {"class_loss": "ia_bce", **to_options(raw, LOSS)}
    return neck_options(raw), {"type": "rf_detr", **to_options(raw, _FIELDS), "masks": False, "loss": loss}


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' LW-DETR does not have.
    """
    check_export(plain, "LW-DETR")
    neck, head = plain["neck"], plain["head"]
    backbone: Any = model.get_submodule("backbone")
    raw = {
        "model_type": "lw_detr",
        "architectures": ["LwDetrForObjectDetection"],
        **FIXED,
        **neck_fields(neck, "lw_detr"),
        **to_fields(head, _FIELDS),
        **to_fields(head["loss"], LOSS),
        # Layers after the last map are not built here.
        "backbone_config": {**backbone.config.to_config_json(), "num_hidden_layers": backbone.num_stages},
    }
    encoder = {name.removeprefix(_NET): value for name, value in state_of(model, "backbone").items()}
    exported = {f"{ENCODER}{name}": value for name, value in export_lw_detr_vit(encoder).items()}
    exported |= export_scale_projector(state_of(model, "neck"), "lw_detr")
    return raw, exported | rename(state_of(model, "head"), to_theirs(_NAMES))
