"""Names of the hybrid encoder in transformers' RT-DETR (v2), D-FINE and DEIMv2, and so of the checkpoints published in
their format, in a `VisionModel` with `neck=hybrid_encoder` or, for some of DEIMv2's, `neck=spatial_tuning` or
`neck=lite_encoder`. Heads and backbones have names of their own.

Those of files come first; a model in memory has other names for a few of them, in newer versions of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

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
