"""transformers' RT-DETR (`RTDetrForObjectDetection`), and RT-DETRv2 where its arithmetic is the same: config.json, and
names of the decoder, both ways. Those of the hybrid encoder are in `hybrid_encoder.py`, of the backbone in `resnet.py`
and `hgnet_v2.py`. Ours is written as RT-DETR.

transformers reads the padding of a batch as if it belonged to the images; ours does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import Fields, check_fixed, to_fields, to_options, warn_about_dropout
from vision_stack.weights.deformable_detr import DECODER_LAYERS, PREDICTOR, one_of_each_predictor
from vision_stack.weights.encoder import backbone_part, export_backbone, state_of, with_frozen_norms
from vision_stack.weights.hybrid_encoder import convert_hybrid_encoder, export_hybrid_encoder, neck_fields, neck_options
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

ENCODER = "model.backbone.model."  # of the backbone's names
_BACKBONE = {"model_type": "rt_detr_resnet", "out_indices": [2, 3, 4]}  # where a file has none
_NECK = ("model.encoder.", "model.encoder_input_proj.")  # of the neck's names

FIELDS: Fields = (  # theirs, ours, transformers' default; D-FINE's, too
    ("num_queries", "num_queries", 300),
    ("d_model", "hidden_dim", 256),
    ("decoder_layers", "num_decoder_layers", 6),
    ("decoder_attention_heads", "num_heads", 8),
    ("decoder_ffn_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.0),
    ("num_denoising", "num_denoising", 100),
    ("label_noise_ratio", "label_noise_ratio", 0.5),
    ("box_noise_scale", "box_noise_scale", 1.0),
)
_POINTS: Fields = (("decoder_n_points", "num_points", 4),)
LOSS: Fields = (
    ("weight_loss_vfl", "class_weight", 1.0),
    ("weight_loss_bbox", "bbox_weight", 5.0),
    ("weight_loss_giou", "giou_weight", 2.0),
    ("matcher_class_cost", "class_cost", 2.0),
    ("matcher_bbox_cost", "bbox_cost", 5.0),
    ("matcher_giou_cost", "giou_cost", 2.0),
)
FIXED = {
    "decoder_activation_function": "relu",
    "with_box_refine": True,
    "learn_initial_query": False,
    "use_focal_loss": True,
    "matcher_alpha": 0.25,
    "matcher_gamma": 2.0,
    "focal_loss_alpha": 0.75,
    "focal_loss_gamma": 2.0,
}
OF_V2 = {"decoder_offset_scale": 0.5, "decoder_method": "default"}  # as in the first version

SELECTION: Names = (  # D-FINE's, too
    *(
        (f"model.decoder_input_proj.{{i}}.{number}.{{p}}", f"head.input_projections.{{i}}.{part}.{{p}}")
        for number, part in enumerate(("conv", "norm"))
    ),
    ("model.decoder.query_pos_head.layers.{i}.{p}", "head.query_position.layers.{i}.{p}"),
    (f"{PREDICTOR}class_embed.{{i}}.{{p}}", "head.class_embed.{i}.{p}"),
    ("model.enc_output.0.{p}", "head.encoder_output.{p}"),
    ("model.enc_output.1.{p}", "head.encoder_norm.{p}"),
    ("model.enc_score_head.{p}", "head.encoder_class.{p}"),
    ("model.enc_bbox_head.layers.{i}.{p}", "head.encoder_bbox.layers.{i}.{p}"),
    ("model.denoising_class_embed.{p}", "head.denoising_class_embed.{p}"),
)
_NAMES: Names = (
    *SELECTION,
    *DECODER_LAYERS,
    (f"{PREDICTOR}bbox_embed.{{i}}.layers.{{j}}.{{p}}", "head.bbox_embed.{i}.layers.{j}.{p}"),
)
_CONSTANT = (r"model\.decoder\.layers\.\d+\.encoder_attn\.n_points_scale", None)  # RT-DETRv2's


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, FIXED | OF_V2)
    neck = neck_options(raw)
    levels = len(raw.get("feat_strides", (8, 16, 32)))
    check_fixed(raw, {"num_feature_levels": levels, "decoder_n_levels": levels})
    loss = {"class_loss": "varifocal", **to_options(raw, LOSS)}
    return neck, {"type": "rt_detr", **to_options(raw, (*FIELDS, *_POINTS)), "loss": loss, "masks": False}


def backbone_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a config.json, as a config.json of its own."""
    part = backbone_part({**raw, "backbone_config": raw.get("backbone_config") or _BACKBONE})
    return with_frozen_norms(part) if raw.get("freeze_backbone_batch_norms", True) else part


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    neck, rest = split_neck(state)
    return convert_hybrid_encoder(neck, "rt_detr") | convert_decoder(rest)


def split_neck(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Their state dict without the backbone -> that of the hybrid encoder, and the rest."""
    neck = {key: value for key, value in state.items() if key.startswith(_NECK)}
    return neck, {key: value for key, value in state.items() if key not in neck}


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict without backbone and encoder -> that of the head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(one_of_each_predictor(state), (*to_ours(_NAMES), _CONSTANT))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the names that files have."""
    return rename(state, to_theirs(_NAMES))


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' RT-DETR does not have.
    """
    raw, exported = export_all_but_the_head(model, plain, "rt_detr")
    raw |= {"architectures": ["RTDetrForObjectDetection"], **to_fields(plain["head"], _POINTS)}
    return raw, exported | export_decoder(state_of(model, "head"))


def export_all_but_the_head(
    model: nn.Module, plain: Mapping[str, Any], model_type: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields that RT-DETR and D-FINE share, and the state dict of backbone and hybrid encoder."""
    neck, head = plain["neck"], plain["head"]
    if head["loss"]["class_loss"] != "varifocal":
        raise ConfigError(f"head.loss.class_loss: transformers' {model_type} has varifocal only")
    warn_about_dropout(neck, head, model_type)
    fields = neck_fields(neck, model_type)
    levels = len(fields["feat_strides"])
    backbone, encoder = export_backbone(model, plain, finest=neck["finest_stride"])
    module: Any = model.get_submodule("backbone")
    raw = {
        "model_type": model_type,
        **fields,
        **to_fields(head, FIELDS),
        **to_fields(head["loss"], LOSS),
        **FIXED,
        "encoder_in_channels": module.channels[-levels:],
        "decoder_in_channels": [neck["channels"]] * levels,
        "num_feature_levels": levels,
        "freeze_backbone_batch_norms": bool(plain["backbone"].get("freeze_norm")),
        "backbone_config": backbone,
    }
    exported = {f"{ENCODER}{name}": value for name, value in encoder.items()}
    return raw, exported | export_hybrid_encoder(state_of(model, "neck"), model_type)
