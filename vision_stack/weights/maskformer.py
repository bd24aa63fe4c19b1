"""transformers' MaskFormer (`MaskFormerForInstanceSegmentation`), and so the checkpoints published in its format, as
the plain `pixel_decoder` neck and the `maskformer` head: config.json and names of tensors, both ways. The backbone has
names of its own.

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
from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_FPN = "model.pixel_level_module.decoder.fpn."
_DECODER = "model.transformer_module."
_LAYER = f"{_DECODER}decoder.layers.{{i}}."
_ATTENTION = {"self_attn": "self_attn", "encoder_attn": "cross_attn"}

_NECK: Fields = (("fpn_feature_size", "channels", 256), ("mask_feature_size", "mask_channels", 256))
_DECODER_FIELDS: Fields = (  # in `decoder_config`
    ("num_queries", "num_queries", 100),
    ("d_model", "hidden_dim", 256),
    ("decoder_layers", "num_decoder_layers", 6),
    ("decoder_attention_heads", "num_heads", 8),
    ("decoder_ffn_dim", "ffn_dim", 2048),
    ("dropout", "dropout", 0.1),
)
_LOSS: Fields = (
    ("cross_entropy_weight", "class_weight", 1.0),
    ("mask_weight", "mask_weight", 20.0),
    ("dice_weight", "dice_weight", 1.0),
    ("no_object_weight", "no_object_weight", 0.1),
)
_FIXED = {"model_type": "detr", "activation_function": "relu"}  # in `decoder_config`

_NAMES: Names = (
    (f"{_FPN}stem.0.{{p}}", "neck.top.conv.{p}"),
    (f"{_FPN}stem.1.{{p}}", "neck.top.norm.{p}"),
    ("model.pixel_level_module.decoder.mask_projection.{p}", "neck.mask_projection.{p}"),
    (f"{_DECODER}queries_embedder.weight", "head.query_embed.weight"),
    (f"{_DECODER}input_projection.{{p}}", "head.input_projection.{p}"),
    *(
        (f"{_LAYER}{theirs}.{part}_proj.{{p}}", f"head.layers.{{i}}.{ours}.{part}_proj.{{p}}")
        for theirs, ours in _ATTENTION.items()
        for part in ("q", "k", "v", "out")
    ),
    *(
        (f"{_LAYER}{theirs}_layer_norm.{{p}}", f"head.layers.{{i}}.{ours}_norm.{{p}}")
        for theirs, ours in _ATTENTION.items()
    ),
    (f"{_LAYER}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_LAYER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}decoder.layernorm.{{p}}", "head.decoder_norm.{p}"),
    ("class_predictor.{p}", "head.class_embed.{p}"),
    ("mask_embedder.{i}.0.{p}", "head.mask_embed.layers.{i}.{p}"),
    # Of a model in memory, in newer versions; files have the names above.
    *(
        (f"{_LAYER}{theirs}.o_proj.{{p}}", f"head.layers.{{i}}.{ours}.out_proj.{{p}}")
        for theirs, ours in _ATTENTION.items()
    ),
    (f"{_LAYER}mlp.fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' MaskFormer, as its files have it, without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    num_levels = len({k.removeprefix(f"{_FPN}layers.").split(".")[0] for k in state if k.startswith(f"{_FPN}layers.")})
    return rename(state, (*to_ours((*_NAMES, *_laterals(num_levels))), UNUSED))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`."""
    num_levels = len({k.split(".")[2] for k in state if k.startswith("neck.lateral.")})
    return rename(state, to_theirs((*_NAMES, *_laterals(num_levels))))


def _laterals(num_levels: int) -> Names:
    """Of the pyramid's levels, which transformers counts from coarse to fine."""
    return tuple(
        (f"{_FPN}layers.{num_levels - 1 - level}.{theirs}.{number}.{{p}}", f"neck.{ours}.{level}.{part}.{{p}}")
        for level in range(num_levels)
        for theirs, ours in (("proj", "lateral"), ("block", "output"))
        for number, part in enumerate(("conv", "norm"))
    )


def parts_of(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain options of neck and head for a config.json; ConfigError where it has what is not built here."""
    decoder = raw.get("decoder_config") or {}
    if not isinstance(decoder, Mapping):
        raise ConfigError(f"decoder_config: expected a mapping, got a {type(decoder).__name__}")
    check_fixed(decoder, _FIXED)
    check_layers(decoder.get("decoder_layers", 6), least=1)
    loss = {"mask_loss": "focal", "class_cost": 1.0, **to_options(raw, _LOSS)}
    neck = {"type": "pixel_decoder", **to_options(raw, _NECK)}
    return neck, {"type": "maskformer", **to_options(decoder, _DECODER_FIELDS), "loss": loss}


def export(model: nn.Module, plain: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Their config.json, but for the classes, and state dict of a `VisionModel` of plain options `plain`.

    Raises:
        ConfigError: parts that transformers' MaskFormer does not have.
    """
    neck, head = plain["neck"], plain["head"]
    if neck["num_encoder_layers"]:
        raise ConfigError("neck.num_encoder_layers: transformers' MaskFormer has no encoder in its pixel decoder")
    check_group_norms(neck)
    backbone, encoder = export_backbone(model, plain, finest=4, maskformer=True)
    raw = {
        "model_type": "maskformer",
        "architectures": ["MaskFormerForInstanceSegmentation"],
        **to_fields(neck, _NECK),
        "decoder_config": {**_FIXED, **to_fields(head, _DECODER_FIELDS)},
        **to_fields(head["loss"], _LOSS),
        "backbone_config": backbone,
    }
    exported = {f"{ENCODER}{name}": tensor for name, tensor in encoder.items()}
    return raw, exported | export_decoder(state_of(model, "neck", "head"))
