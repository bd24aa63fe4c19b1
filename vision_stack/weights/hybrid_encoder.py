"""The hybrid encoder of transformers' RT-DETR (v2), D-FINE and DEIMv2, and so of the checkpoints published in their
format, as `neck=hybrid_encoder` or, for some of DEIMv2's, `neck=spatial_tuning` or `neck=lite_encoder`: config.json and
names of tensors, both ways. Heads and backbones have files of their own.

Names of files come first; a model in memory has other names for a few tensors, in newer versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vision_stack.config import ConfigError
from vision_stack.weights.config_fields import Fields, check_fixed, check_same, to_fields, to_options
from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

_BLOCKS = 3  # of a fusion block with a `depth_mult` of 1
_LITE: Fields = (("encoder_hidden_dim", "channels", 256), ("hidden_expansion", "expansion", 1.0))
_HYBRID: Fields = (
    *_LITE,
    ("encoder_layers", "num_encoder_layers", 1),
    ("encoder_attention_heads", "num_heads", 8),
    ("encoder_ffn_dim", "ffn_dim", 1024),
    ("dropout", "dropout", 0.0),
)
_STA: Fields = (("spatial_tuning_adapter_inplanes", "detail_channels", 16),)
_FIXED = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "normalize_before": False,
    "positional_encoding_temperature": 10000,
    "batch_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
}
_DINOV3 = "dinov3_vit"  # the backbone of a DEIMv2 with `neck=spatial_tuning`


def neck_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Plain options of the neck of a config.json.

    With `eval_size`, transformers 5.24 leaves the positions out in eval mode; the authors' code does not, nor do we.

    Raises:
        ConfigError: an option that is not built here; one line with the field.
    """
    check_fixed(raw, _FIXED)
    model_type, depth, backbone = raw["model_type"], raw.get("depth_mult", 1.0), raw.get("backbone_config")
    if isinstance(depth, bool) or not isinstance(depth, int | float) or not 0 <= depth <= 60:
        raise ConfigError(f"depth_mult: expected a number from 0 to 60, got {depth!r:.40}")
    blocks = _BLOCKS if model_type.startswith("rt_detr") else round(_BLOCKS * depth)
    if model_type == "deimv2" and raw.get("encoder_type") == "lite":
        check_fixed(raw, {"encoder_has_trailing_conv": True})
        return {"type": "lite_encoder", **to_options(raw, _LITE), "num_blocks": blocks}
    strides = raw.get("feat_strides", [8, 16, 32])
    if not isinstance(strides, list | tuple) or not strides:
        raise ConfigError(f"feat_strides: expected a list of strides, got {strides!r:.40}")
    check_fixed(raw, {"encode_proj_layers": [len(strides) - 1]})
    options = {**to_options(raw, _HYBRID), "num_blocks": blocks, "finest_stride": strides[0]}
    if model_type != "deimv2":
        fusion = "elan" if model_type == "d_fine" else "csp_rep"
        return {"type": "hybrid_encoder", **options, "fusion": fusion, "merge": "concat"}
    check_fixed(raw, {"encoder_fuse_op": "sum"})
    options |= {"fusion": "elan" if raw.get("encoder_has_trailing_conv", True) else "elan_light", "merge": "sum"}
    if isinstance(backbone, Mapping) and backbone.get("model_type") == _DINOV3:
        return {"type": "spatial_tuning", **options, **to_options(raw, _STA)}
    return {"type": "hybrid_encoder", **options}


def neck_fields(neck: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The reverse of `neck_options`, but for the backbone.

    Raises:
        ConfigError: a neck that the models of this type do not have.
    """
    if neck["type"] == "lite_encoder":
        own = {**to_fields(neck, _LITE), "encoder_type": "lite", "encoder_layers": 0}
    else:
        strides = [neck["finest_stride"] * 2**i for i in range(3) if neck["finest_stride"] * 2**i <= 32]
        own = {**to_fields(neck, _HYBRID), "feat_strides": strides, "encode_proj_layers": [len(strides) - 1]}
    if model_type == "deimv2":
        own |= {"encoder_has_trailing_conv": neck.get("fusion", "elan") == "elan"}
        own |= to_fields(neck, _STA) if neck["type"] == "spatial_tuning" else {}
    if not model_type.startswith("rt_detr"):
        own["depth_mult"] = neck["num_blocks"] / _BLOCKS
    backbone = {"model_type": _DINOV3} if neck["type"] == "spatial_tuning" else None
    theirs = neck_options({**own, "backbone_config": backbone, "model_type": model_type})
    check_same(neck, theirs, "neck", model_type)
    return {**_FIXED, **own}


_SPLIT = ("csp_rep1.conv1.", "csp_rep2.conv1.")  # DEIMv2's, each of which is two convolutions here
_FILE, _MEMORY = "model.encoder.encoder.0.layers.{i}.", "model.encoder.aifi.0.layers.{i}."


def _encoder(theirs: str, out: str, first: str, second: str) -> Names:
    parts = {f"self_attn.{part}_proj": f"self_attn.{part}_proj" for part in "qkv"} | {
        f"self_attn.{out}": "self_attn.out_proj",
        "self_attn_layer_norm": "self_attn_norm",
        first: "ffn.linear1",
        second: "ffn.linear2",
        "final_layer_norm": "ffn_norm",
    }
    return tuple((f"{theirs}{name}.{{p}}", f"neck.encoder.{{i}}.{ours}.{{p}}") for name, ours in parts.items())


_IN_FILES = _encoder(_FILE, "out_proj", "fc1", "fc2")
_D_FINE_IN_MEMORY = _encoder(_MEMORY, "o_proj", "mlp.layers.0", "mlp.layers.1")
_PROJECTIONS: Names = tuple(
    (f"model.encoder_input_proj.{{i}}.{number}.{{p}}", f"neck.projections.{{i}}.{part}.{{p}}")
    for number, part in enumerate(("conv", "norm"))
)


def _convs(theirs: str, ours: str) -> Names:
    """Of a convolution and its norm."""
    return tuple((f"{theirs}.{part}.{{p}}", f"{ours}.{part}.{{p}}") for part in ("conv", "norm"))


def _csp_rep(theirs: str, ours: str) -> Names:
    return (
        *_convs(f"{theirs}.conv1", f"{ours}.main"),
        *_convs(f"{theirs}.conv2", f"{ours}.shortcut"),
        *_convs(f"{theirs}.conv3", f"{ours}.output"),
        *_rep_vgg(theirs, ours),
    )


def _rep_vgg(theirs: str, ours: str) -> Names:
    return (
        *_convs(f"{theirs}.bottlenecks.{{j}}.conv1", f"{ours}.blocks.{{j}}.wide"),
        *_convs(f"{theirs}.bottlenecks.{{j}}.conv2", f"{ours}.blocks.{{j}}.point"),
    )


def _elan(theirs: str, ours: str) -> Names:
    return (
        *_convs(f"{theirs}.conv1", f"{ours}.split"),
        *_csp_rep(f"{theirs}.csp_rep1", f"{ours}.branches.0.0"),
        *_convs(f"{theirs}.conv2", f"{ours}.branches.0.1"),
        *_csp_rep(f"{theirs}.csp_rep2", f"{ours}.branches.1.0"),
        *_convs(f"{theirs}.conv3", f"{ours}.branches.1.1"),
        *_convs(f"{theirs}.conv4", f"{ours}.merge"),
    )


def _deimv2_elan(theirs: str, ours: str) -> Names:
    """With the two convolutions at the start of a CSP block in one, the shortcut's channels first."""
    names = [*_convs(f"{theirs}.conv1", f"{ours}.split"), *_convs(f"{theirs}.conv2", f"{ours}.merge")]
    for number in range(2):
        block, branch = f"{theirs}.csp_rep{number + 1}", f"{ours}.branches.{number}"
        for part, name in enumerate(("shortcut", "main")):
            names += [(f"{joined}#{part}", own) for joined, own in _convs(f"{block}.conv1", f"{branch}.0.{name}")]
        names += [*_rep_vgg(block, f"{branch}.0"), *_convs(f"{block}.conv2", f"{branch}.1")]
    return tuple(names)


_LATERALS = _convs("model.encoder.lateral_convs.{i}", "neck.laterals.{i}")
_PLACES = (
    ("model.encoder.fpn_blocks.{i}", "neck.top_down.{i}"),
    ("model.encoder.pan_blocks.{i}", "neck.bottom_up.{i}"),
)
_DOWNSAMPLE = ("model.encoder.downsample_convs.{i}", "neck.downsample.{i}")
_SC_DOWN: Names = tuple(
    pair for number in range(2) for pair in _convs(f"{_DOWNSAMPLE[0]}.conv{number + 1}", f"{_DOWNSAMPLE[1]}.{number}")
)

_DEIMV2 = (
    *_D_FINE_IN_MEMORY,  # in files, too
    *_LATERALS,
    *_SC_DOWN,
    *(pair for theirs, ours in _PLACES for pair in _deimv2_elan(theirs, ours)),
)
_ADAPTER = "model.conv_encoder.spatial_tuning_adapter"

# By transformers' `model_type`, of which rt_detr_v2 is as rt_detr.
_NAMES: dict[str, Names] = {
    "rt_detr": (
        *_PROJECTIONS,
        *_IN_FILES,
        *_encoder(_MEMORY, "o_proj", "mlp.fc1", "mlp.fc2"),
        *_LATERALS,
        *_convs(*_DOWNSAMPLE),
        *(pair for theirs, ours in _PLACES for pair in _csp_rep(theirs, ours)),
    ),
    "d_fine": (
        *_PROJECTIONS,
        *_IN_FILES,
        *_D_FINE_IN_MEMORY,
        *_LATERALS,
        *_SC_DOWN,
        *(pair for theirs, ours in _PLACES for pair in _elan(theirs, ours)),
    ),
    "deimv2": (*_convs("model.conv_encoder.encoder_input_proj.{i}", "neck.projections.{i}"), *_DEIMV2),
    "deimv2, spatial_tuning": (
        *_convs("model.conv_encoder.fusion_proj.{i}", "neck.projections.{i}"),
        *_convs(f"{_ADAPTER}.stem_conv", "neck.detail.stem.0"),
        *(pair for n in range(3) for pair in _convs(f"{_ADAPTER}.conv{n + 2}", f"neck.detail.steps.{n}")),
        *_DEIMV2,
    ),
    "deimv2, lite_encoder": (
        *_convs("model.encoder.input_proj.0", "neck.projection"),
        *_convs("model.encoder.down_conv1", "neck.coarser"),
        *_convs("model.encoder.bi_fusion_conv", "neck.context"),
        *_convs("model.encoder.down_conv2", "neck.downsample"),
        *_deimv2_elan("model.encoder.fpn_block", "neck.top_down"),
        *_deimv2_elan("model.encoder.pan_block", "neck.bottom_up"),
    ),
}


def convert_hybrid_encoder(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The hybrid encoder's part of a state dict of transformers', with its whole names -> `neck.` and ours.

    Args:
        family: transformers' `model_type`; "deimv2, spatial_tuning" for a DEIMv2 on DINOv3, "deimv2, lite_encoder" for
            one with `encoder_type: lite`.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    if family.startswith("deimv2"):
        for block in _SPLIT:
            state = split_part(state, block, 2)
    return rename(state, to_ours(_NAMES[family]))


def export_hybrid_encoder(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The reverse of `convert_hybrid_encoder`, with the names of files."""
    return join_parts(rename(state, to_theirs(_NAMES[family])))
