"""transformers' D-FINE (`DFineForObjectDetection`): config.json, and names of the decoder, both ways. Those of the
hybrid encoder are in `hybrid_encoder.py`, of the backbone in `hgnet_v2.py`.

Those of files come first; a model in memory has other names for a few of them, in newer versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vision_stack.ops.box_edges import LARGEST_MOVE, NUM_BINS
from vision_stack.weights.config_fields import Fields, check_fixed, check_same, to_fields, to_options
from vision_stack.weights.deformable_detr import DECODER_LAYERS, PREDICTOR, one_of_each_predictor
from vision_stack.weights.encoder import state_of
from vision_stack.weights.hybrid_encoder import convert_hybrid_encoder, neck_options
from vision_stack.weights.renaming import Names, Rules, rename, to_ours, to_theirs
from vision_stack.weights.rt_detr import FIELDS, FIXED, LOSS, OF_V2, SELECTION, export_all_but_the_head, split_neck

_LAYER, _OURS = "model.decoder.layers.{i}.", "head.layers.{i}."
EDGES: Names = (  # DEIMv2's, too
    ("model.decoder.pre_bbox_head.layers.{i}.{p}", "head.first_bbox.layers.{i}.{p}"),
    (f"{PREDICTOR}bbox_embed.{{i}}.layers.{{j}}.{{p}}", "head.edge_embed.{i}.layers.{j}.{p}"),
    ("model.decoder.lqe_layers.{i}.reg_conf.layers.{j}.{p}", "head.quality.{i}.layers.{j}.{p}"),
)
GATES: Names = (
    (f"{_LAYER}gateway.gate.{{p}}", f"{_OURS}merge.gates.{{p}}"),
    (f"{_LAYER}gateway.norm.{{p}}", f"{_OURS}merge.norm.{{p}}"),
)
CONSTANTS: Rules = (  # of the configuration
    (r"model\.decoder\.(up|reg_scale)", None),
    (r"model\.decoder\.layers\.\d+\.encoder_attn\.num_points_scale", None),
)
_NAMES: Names = (
    *SELECTION,
    *DECODER_LAYERS,
    *((f"{_LAYER}mlp.layers.{n}.{{p}}", f"{_OURS}ffn.linear{n + 1}.{{p}}") for n in range(2)),
    *EDGES,
    *GATES,
)


_LOSS: Fields = (*LOSS, ("weight_loss_fgl", "fgl_weight", 0.15), ("weight_loss_ddf", "ddf_weight", 1.5))
FIXED_EDGES = {
    "max_num_bins": NUM_BINS - 1,
    "up": LARGEST_MOVE,
    "top_prob_values": 4,
    "lqe_hidden_dim": 64,
    "lqe_layers": 2,
    "layer_scale": 1.0,
    "eval_idx": -1,
}


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, FIXED | OF_V2 | FIXED_EDGES)
    neck = neck_options(raw)
    levels = len(raw.get("feat_strides", (8, 16, 32)))
    check_fixed(raw, {"num_feature_levels": levels})
    head = {
        "type": "d_fine",
        **to_options(raw, FIELDS),
        **points_and_scale(raw, levels),
        "loss": {"class_loss": "varifocal", **to_options(raw, _LOSS)},
        "masks": False,
    }
    return neck, head


def points_and_scale(raw: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Options of the head for points on so many maps, one number or one for each, and for the scale of edges."""
    points = raw.get("decoder_n_points", 4)
    return {
        "num_points": points if isinstance(points, list) else [points] * levels,
        "reg_scale": raw.get("reg_scale", 4.0),
    }


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their state dict without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    neck, rest = split_neck(state)
    return convert_hybrid_encoder(neck, "d_fine") | convert_decoder(rest)


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' D-FINE does not have.
    """
    check_same(plain["head"], {"activation": "relu"}, "head", "D-FINE")
    raw, exported = export_all_but_the_head(model, plain, "d_fine")
    head: Any = model.get_submodule("head")
    points, reg_scale = list(head.layers[0].cross_attn.num_points), plain["head"]["reg_scale"]
    raw |= FIXED_EDGES | to_fields(plain["head"]["loss"], _LOSS)
    raw |= {"architectures": ["DFineForObjectDetection"], "decoder_n_points": points, "reg_scale": reg_scale}
    return raw, exported | export_decoder(state_of(model, "head"), points, reg_scale)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' D-FINE, without backbone and encoder -> that of the head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(one_of_each_predictor(state), (*CONSTANTS, *to_ours(_NAMES)))


def export_decoder(state: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the names that files have, and with the constants.

    Args:
        num_points, reg_scale: of the head's config.
    """
    return with_constants(rename(state, to_theirs(_NAMES)), num_points, reg_scale)


def with_constants(theirs: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """Their state dict with what transformers keeps in it of the configuration."""
    like = theirs["model.enc_score_head.bias"]
    steps = torch.cat([like.new_full((count,), 1 / count) for count in num_points])
    offsets = "sampling_offsets.weight"
    scales = {key.replace(offsets, "num_points_scale"): steps.clone() for key in theirs if key.endswith(offsets)}
    scalars = {"up": LARGEST_MOVE, "reg_scale": reg_scale}
    return {**theirs, **scales, **{f"model.decoder.{name}": like.new_tensor([x]) for name, x in scalars.items()}}
