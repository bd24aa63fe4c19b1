"""transformers' Deformable DETR (`DeformableDetrForObjectDetection`), and so the checkpoints published in its format,
as `neck=deformable_encoder` and `head=deformable_detr`: config.json and names of tensors, both ways. The backbone has
names of its own.

Names of files come first; a model in memory has other names for a few tensors, in newer versions of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import (
    Fields,
    check_fixed,
    check_group_norms,
    to_fields,
    to_options,
    warn_about_dropout,
)
from vision_stack.weights.encoder import backbone_part, export_backbone, state_of, with_frozen_norms
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

ENCODER = "model.backbone.conv_encoder.model."  # of the backbone's names
_BACKBONE = {"backbone": "resnet50", "use_timm_backbone": True}  # where a file has none

_ENCODER = "model.encoder.layers.{i}."
_DECODER = "model.decoder.layers.{i}."
_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
PREDICTOR = "model.decoder."  # what the names of predictors begin with, in files of refining models

_BACKBONE_MAPS = 3  # of strides 8, 16, 32
_MAX_EXTRA = 3  # coarser ones
_NECK: Fields = (  # theirs, ours, transformers' default
    ("d_model", "channels", 256),
    ("encoder_layers", "num_encoder_layers", 6),
    ("encoder_attention_heads", "num_heads", 8),
    ("encoder_n_points", "num_points", 4),
    ("encoder_ffn_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.1),
)
_HEAD: Fields = (
    ("num_queries", "num_queries", 300),
    ("d_model", "hidden_dim", 256),
    ("decoder_layers", "num_decoder_layers", 6),
    ("decoder_attention_heads", "num_heads", 8),
    ("decoder_n_points", "num_points", 4),
    ("decoder_ffn_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.1),
    ("with_box_refine", "with_box_refine", False),
    ("two_stage", "two_stage", False),
)
_LOSS: Fields = (
    ("bbox_loss_coefficient", "bbox_weight", 5.0),
    ("giou_loss_coefficient", "giou_weight", 2.0),
    ("class_cost", "class_cost", 1.0),
    ("bbox_cost", "bbox_cost", 5.0),
    ("giou_cost", "giou_cost", 2.0),
)
_FIXED = {"activation_function": "relu", "position_embedding_type": "sine", "dilation": False, "focal_alpha": 0.25}

DECODER_LAYERS: Names = (  # RT-DETR's and D-FINE's, too
    *((f"{_DECODER}encoder_attn.{part}.{{p}}", f"head.layers.{{i}}.cross_attn.{part}.{{p}}") for part in _DEFORMABLE),
    *(
        (f"{_DECODER}self_attn.{theirs}_proj.{{p}}", f"head.layers.{{i}}.self_attn.{ours}_proj.{{p}}")
        for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "out"), ("o", "out"))
    ),
    (f"{_DECODER}self_attn_layer_norm.{{p}}", "head.layers.{i}.self_attn_norm.{p}"),
    (f"{_DECODER}encoder_attn_layer_norm.{{p}}", "head.layers.{i}.cross_attn_norm.{p}"),
    *((f"{_DECODER}{mlp}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}") for mlp in ("", "mlp.")),
    (f"{_DECODER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
)
_NAMES: Names = (
    ("model.level_embed", "neck.level_embed.weight"),
    *((f"{_ENCODER}self_attn.{part}.{{p}}", f"neck.layers.{{i}}.attn.{part}.{{p}}") for part in _DEFORMABLE),
    (f"{_ENCODER}self_attn_layer_norm.{{p}}", "neck.layers.{i}.attn_norm.{p}"),
    *((f"{_ENCODER}{mlp}fc{{j}}.{{p}}", "neck.layers.{i}.ffn.linear{j}.{p}") for mlp in ("", "mlp.")),
    (f"{_ENCODER}final_layer_norm.{{p}}", "neck.layers.{i}.ffn_norm.{p}"),
    *DECODER_LAYERS,
    ("model.query_position_embeddings.weight", "head.query_embed.weight"),
    ("model.reference_points.{p}", "head.reference_points.{p}"),
    ("model.enc_output.{p}", "head.proposals.output.{p}"),
    ("model.enc_output_norm.{p}", "head.proposals.output_norm.{p}"),
    ("model.pos_trans.{p}", "head.proposals.query.{p}"),
    ("model.pos_trans_norm.{p}", "head.proposals.query_norm.{p}"),
    (f"{PREDICTOR}class_embed.{{i}}.{{p}}", "head.class_embed.{i}.{p}"),
    (f"{PREDICTOR}bbox_embed.{{i}}.layers.{{j}}.{{p}}", "head.bbox_embed.{i}.layers.{j}.{p}"),
)


def one_of_each_predictor(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with predictors under the decoder's names; the whole model has the same ones, and files have either."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        found.setdefault(f"{PREDICTOR}{key}" if re.match(r"(class|bbox)_embed\.", key) else key, value)
    return found


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here.

    transformers weighs the class loss by 1, the authors by 2, as here; a config.json does not have it.
    """
    check_fixed(raw, _FIXED)
    levels = raw.get("num_feature_levels", 4)
    if levels not in (1, 3, 4, 5, 6):
        raise ConfigError(f"num_feature_levels: {levels!r:.40} is not built here, only 1 (of stride 32) and 3 to 6 are")
    neck = {"type": "deformable_encoder", **to_options(raw, _NECK)}
    neck |= {"finest_stride": 32 if levels == 1 else 8, "extra_levels": max(levels - _BACKBONE_MAPS, 0)}
    head = {"type": "deformable_detr", **to_options(raw, _HEAD)}
    if head["two_stage"]:
        head["num_queries"] = raw.get("two_stage_num_proposals", 300)
    return neck, {**head, "loss": {"class_loss": "focal", **to_options(raw, _LOSS)}, "masks": False}


def backbone_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone of a config.json, as a config.json of its own."""
    described = raw.get("backbone_config") or raw.get("backbone")
    indices = [4] if raw.get("num_feature_levels", 4) == 1 else [2, 3, 4]
    return with_frozen_norms(backbone_part(raw if described else {**raw, **_BACKBONE}, indices))


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' Deformable DETR, without the backbone -> that of neck and head.

    Without box refinement all layers share the first one's predictors. In two stages the last predictors are those of
    the proposals, whose classifier's first row is the only one that is used.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    layers = len({key.split(".")[3] for key in state if key.startswith("model.decoder.layers.")})
    two_stage = "model.enc_output.weight" in state
    refine = any(key.startswith(f"{PREDICTOR}bbox_embed.") for key in state) or _differ(state)
    count = layers + two_stage if refine else 1
    maps = sum(
        bool(re.fullmatch(r"model\.input_proj\.\d+\.0\.weight", k)) and v.shape[2] == 1 for k, v in state.items()
    )
    names = (*_projections(maps), *_NAMES)
    renamed = rename(_predictors(state, count), to_ours((*_of_proposals(layers), *names) if two_stage else names))
    return {key: value[:1] if ".objectness." in key else value for key, value in renamed.items()}


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' Deformable DETR does not have.
    """
    neck, head = plain["neck"], plain["head"]
    check_group_norms(neck)
    if neck["channels"] != head["hidden_dim"]:
        raise ConfigError(
            f"neck.channels: transformers' Deformable DETR has head.hidden_dim, {head['hidden_dim']}, there, too"
        )
    warn_about_dropout(neck, head, "Deformable DETR")
    if head["loss"]["class_loss"] != "focal":
        raise ConfigError("head.loss.class_loss: transformers' Deformable DETR has focal only")
    backbone, encoder = export_backbone(model, plain, finest=neck["finest_stride"])
    state = state_of(model, "neck", "head")
    maps = len({key.split(".")[2] for key in state if key.startswith("neck.projections.")})
    losses = to_fields(head["loss"], _LOSS)  # whole numbers in transformers; of others it has its defaults
    raw = {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        **to_fields(neck, _NECK),
        **to_fields(head, _HEAD),
        **{name: int(value) for name, value in losses.items() if value == int(value)},
        **_FIXED,
        "num_feature_levels": maps + neck["extra_levels"],
        "two_stage_num_proposals": head["num_queries"],
        "backbone_config": backbone,
    }
    names = (*_of_proposals(head["num_decoder_layers"]), *_projections(maps), *_NAMES)
    theirs = rename(_with_all_rows(state), to_theirs(names))
    whole = {
        key.removeprefix(PREDICTOR): key for key in theirs if re.match(r"model\.decoder\.(class|bbox)_embed\.", key)
    }
    theirs |= {key: theirs[of_decoder].clone() for key, of_decoder in whole.items()}
    for key, of_decoder in whole.items():  # which only has those that it calls itself
        if not head["two_stage" if key.startswith("class") else "with_box_refine"]:
            del theirs[of_decoder]
    timm = backbone["model_type"] == "timm_backbone"  # which transformers unwraps here
    encoder = {name.removeprefix("_backbone.") if timm else name: value for name, value in encoder.items()}
    counters = (name for name in list(encoder) if name.endswith("num_batches_tracked"))
    for name in counters:  # its norms are frozen, always
        del encoder[name]
    return raw, {f"{ENCODER}{name}": value for name, value in encoder.items()} | theirs


def _differ(state: Mapping[str, Tensor]) -> bool:
    """Whether layers have predictors of their own, in a file without the decoder's names of them."""
    boxes = {key: value for key, value in state.items() if key.startswith("bbox_embed.")}
    return any(not torch.equal(value, boxes[_first(key)]) for key, value in boxes.items())


def _first(key: str) -> str:
    """The name of the same tensor in the first predictor."""
    return re.sub(r"(class|bbox)_embed\.\d+\.", r"\1_embed.0.", key)


def _predictors(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The same with `count` predictors; files leave out those that share the first one's tensors."""
    found = one_of_each_predictor(state)
    rest = {key: value for key, value in found.items() if _first(key) == key}
    for key in [key for key in found if re.match(r"model\.decoder\.(class|bbox)_embed\.0\.", key)]:
        each = [re.sub(r"_embed\.0\.", f"_embed.{n}.", key) for n in range(count)]
        rest |= {name: found.get(name, found[key]) for name in each}
    return rest


def _with_all_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The proposals' classifier with a row for each class, all alike; transformers reads the first."""
    classes = state["head.class_embed.0.bias"].numel()
    return {k: v.repeat_interleave(classes, 0) if ".objectness." in k else v for k, v in state.items()}


def _projections(maps: int) -> Names:
    """Of the backbone's maps, and of the coarser ones, each of which halves the map before it."""
    places = [*((n, f"projections.{n}") for n in range(maps)), *((maps + n, f"extra.{n}") for n in range(_MAX_EXTRA))]
    return tuple(
        (f"model.input_proj.{level}.{number}.{{p}}", f"neck.{ours}.{part}.{{p}}")
        for level, ours in places
        for number, part in enumerate(("conv", "norm"))
    )


def _of_proposals(layers: int) -> Names:
    """The predictors after those of the decoder's layers."""
    return (
        (f"{PREDICTOR}class_embed.{layers}.{{p}}", "head.proposals.objectness.{p}"),
        (f"{PREDICTOR}bbox_embed.{layers}.layers.{{j}}.{{p}}", "head.proposals.bbox_embed.layers.{j}.{p}"),
    )
