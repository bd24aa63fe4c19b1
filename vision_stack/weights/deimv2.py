"""transformers' DEIMv2 (`Deimv2ForObjectDetection`): config.json, and names of the decoder, both ways. Those of the
necks are in `hybrid_encoder.py`, of the backbones in `hgnet_v2.py` and `vit.py`.

Its MLPs have ReLU but for that of positions, and it scores cells after a linear layer and a norm, which the authors'
code does not; our head has both as options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import Fields, check_fixed, to_fields, to_options, warn_about_dropout
from vision_stack.weights.d_fine import CONSTANTS, EDGES, FIXED_EDGES, GATES, points_and_scale, with_constants
from vision_stack.weights.deformable_detr import DECODER_LAYERS, PREDICTOR, one_of_each_predictor
from vision_stack.weights.encoder import export_backbone, state_of
from vision_stack.weights.hybrid_encoder import convert_hybrid_encoder, export_hybrid_encoder, neck_fields, neck_options
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs
from vision_stack.weights.rt_detr import FIELDS, FIXED, LOSS, OF_V2, SELECTION
from vision_stack.weights.vit import export_dinov3

_HGNET, _DINOV3 = "model.conv_encoder.model.", "model.conv_encoder.backbone."
ENCODERS = (_HGNET, _DINOV3)  # of the backbones' names
_NECK = ("model.encoder.", "model.conv_encoder.")  # of the necks' names
_FAMILIES = {  # by the type of neck, as `hybrid_encoder.py` names them
    "hybrid_encoder": "deimv2",
    "spatial_tuning": "deimv2, spatial_tuning",
    "lite_encoder": "deimv2, lite_encoder",
}
_FIELDS: Fields = (
    *FIELDS,
    ("use_gateway", "use_gateway", True),
    ("share_bbox_head", "share_bbox_head", False),
    ("decoder_activation_function", "position_activation", "relu"),
)
_LOSS: Fields = (
    ("weight_loss_mal", "class_weight", 1.0),
    *(field for field in LOSS if field[1] != "class_weight"),
    ("weight_loss_fgl", "fgl_weight", 0.15),
    ("weight_loss_ddf", "ddf_weight", 1.5),
)
_FIXED = {name: value for name, value in FIXED.items() if not name.startswith(("decoder_activation", "focal_loss"))}
_FIXED |= OF_V2 | FIXED_EDGES
_AS_THEIRS = {"activation": "relu", "encoder_output": True}  # options of the head that are not the authors'
_LITE_LEVELS = 2
_LAYER, _OURS = "model.decoder.layers.{i}.", "head.layers.{i}."
_PLAIN: Names = ((f"{_LAYER}encoder_attn_layer_norm.{{p}}", f"{_OURS}merge.norm.{{p}}"),)  # without gates
_NAMES: Names = (
    *(
        (f"model.decoder_input_proj.{{i}}.{part}.{{p}}", f"head.input_projections.{{i}}.{part}.{{p}}")
        for part in ("conv", "norm")
    ),
    (f"{_LAYER}self_attn.o_proj.{{p}}", f"{_OURS}self_attn.out_proj.{{p}}"),
    *(
        (f"{_LAYER}mlp.{theirs}_proj.{{p}}", f"{_OURS}ffn.{ours}.{{p}}")
        for theirs, ours in (("gate", "gate"), ("up", "value"), ("down", "output"))
    ),
    *EDGES,
    *SELECTION,
)


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    check_fixed(raw, _FIXED)
    neck = neck_options(raw)
    lite = neck["type"] == "lite_encoder"
    levels = _LITE_LEVELS if lite else len(raw.get("feat_strides", (8, 16, 32)))
    check_fixed(raw, {"num_feature_levels": levels})
    head = {
        "type": "deimv2",
        **to_options(raw, _FIELDS),
        **_AS_THEIRS,
        **points_and_scale(raw, levels),
        "loss": {"class_loss": "mal", **to_options(raw, _LOSS)},
        "masks": False,
    }
    return neck, head


def convert(state: Mapping[str, Tensor], *, share_bbox_head: bool = False) -> dict[str, Tensor]:
    """Their state dict without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    neck = {key: value for key, value in state.items() if key.startswith(_NECK)}
    head = {key: value for key, value in state.items() if key not in neck}
    family = "deimv2"
    if any(".fusion_proj." in key for key in neck):
        family = _FAMILIES["spatial_tuning"]
    elif any(".bi_fusion_conv." in key for key in neck):
        family = _FAMILIES["lite_encoder"]
    return convert_hybrid_encoder(neck, family) | convert_decoder(head, share_bbox_head=share_bbox_head)


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' DEIMv2 does not have.
    """
    neck, head = plain["neck"], plain["head"]
    if head["loss"]["class_loss"] != "mal":
        raise ConfigError("head.loss.class_loss: transformers' deimv2 has mal only")
    for name, value in _AS_THEIRS.items():
        if head[name] != value:
            remedy = "a model for transformers is trained with head.activation=relu head.encoder_output=true"
            raise ConfigError(f"head.{name}: transformers' deimv2 has {value!r} only, not {head[name]!r}; {remedy}")
    warn_about_dropout(neck, head, "deimv2")
    backbone, encoder, channels = _export_backbone(model, plain)
    module: Any = model.get_submodule("head")
    points = list(module.layers[0].cross_attn.num_points)
    raw = {
        "model_type": "deimv2",
        "architectures": ["Deimv2ForObjectDetection"],
        **_FIXED,
        **neck_fields(neck, "deimv2"),
        **to_fields(head, _FIELDS),
        **to_fields(head["loss"], _LOSS),
        "decoder_activation_function": head["position_activation"] or head["activation"],
        "encoder_in_channels": channels,
        "decoder_in_channels": [neck["channels"]] * module.num_levels,
        "num_feature_levels": module.num_levels,
        "decoder_n_points": points,
        "reg_scale": head["reg_scale"],
        "freeze_backbone_batch_norms": bool(plain["backbone"].get("freeze_norm")),
        "backbone_config": backbone,
    }
    exported = export_hybrid_encoder(state_of(model, "neck"), _FAMILIES[neck["type"]])
    return raw, encoder | exported | export_decoder(state_of(model, "head"), points, head["reg_scale"])


def _export_backbone(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor], list[int]]:
    """The backbone's config.json, its state dict with whole names, and the channels that the encoder is given."""
    neck, backbone = plain["neck"], model.get_submodule("backbone")
    module: Any = backbone
    if neck["type"] == "lite_encoder":
        described, state = export_backbone(model, plain, finest=16, coarsest=16)
        described = {name: _cut(name, value, module.num_stages) for name, value in described.items()}
    elif neck["type"] == "hybrid_encoder":
        described, state = export_backbone(model, plain, finest=neck["finest_stride"])
    else:
        described, state = _export_dinov3(module, plain["backbone"], state_of(model, "backbone"))
        return described, {f"{_DINOV3}{key}": value for key, value in state.items()}, [neck["channels"]] * 3
    return described, {f"{_HGNET}{key}": value for key, value in state.items()}, list(module.channels)


def _cut(name: str, value: Any, count: int) -> Any:
    """A field of HGNetV2's, of the first stages only where it has an entry for each."""
    return value[:count] if name.startswith(("stage_", "hidden_sizes", "depths")) else value


def _export_dinov3(
    backbone: Any, options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if options["type"] != "dinov3_vit":
        raise ConfigError(
            f"backbone={options['type']}: with neck=spatial_tuning transformers has backbone=dinov3_vit only"
        )
    if options["out_norms"]:
        raise ConfigError("backbone.out_norms: transformers' DINOv3 has none; apply_layernorm is its own norm")
    if len(backbone.out_specs) != 3:
        raise ConfigError(
            f"backbone.out_indices: transformers' deimv2 reads three layers, not {len(backbone.out_specs)}"
        )
    layers, built = options["num_hidden_layers"], backbone.num_stages
    if built < layers and not options["apply_layernorm"]:  # the last of those that are left would get the norm
        raise ConfigError(
            "backbone.out_indices: transformers' DINOv3 without apply_layernorm needs the last layer there"
        )
    described = {**backbone.config.to_config_json(), "num_hidden_layers": built, "reshape_hidden_states": True}
    return described, export_dinov3({key.removeprefix("backbone.net."): value for key, value in state.items()})


def convert_decoder(state: Mapping[str, Tensor], *, share_bbox_head: bool) -> dict[str, Tensor]:
    """State dict of transformers' DEIMv2, without backbone and encoder -> that of the head.

    Args:
        share_bbox_head: of its config.json; a state dict may have what is shared more than once.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    state = one_of_each_predictor(state)
    if share_bbox_head:  # under any of the layers' numbers
        layer = rf"(?<=^{re.escape(PREDICTOR)}bbox_embed\.)\d+"
        state = {re.sub(layer, "0", key): value for key, value in state.items()}
    names = (*_NAMES, *_PLAIN, *GATES, *DECODER_LAYERS)
    return rename(state, (*CONSTANTS, *to_ours(names)))


def export_decoder(state: Mapping[str, Tensor], num_points: Sequence[int], reg_scale: float) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`, with the constants.

    Args:
        num_points, reg_scale: of the head's config.
    """
    gated = any(".merge.gates." in key for key in state)
    names = (*_NAMES, *(GATES if gated else _PLAIN), *DECODER_LAYERS)
    return with_constants(rename(state, to_theirs(names)), num_points, reg_scale)
