"""Names of the hybrid encoder in transformers' RT-DETR, RT-DETRv2 and D-FINE, and so of the checkpoints published in
their format, in a `VisionModel` with `neck=hybrid_encoder`. Heads and backbones have names of their own.

Those of files come first; a model in memory has other names for a few of them, in newer versions of transformers.
"""

from __future__ import annotations

from vision_stack.weights.renaming import Names

_FILE, _MEMORY = "model.encoder.encoder.0.layers.{i}.", "model.encoder.aifi.0.layers.{i}."
_OURS = "neck.encoder.{i}."
_ENCODER: Names = tuple(
    (f"{layer}{theirs}.{{p}}", f"{_OURS}{ours}.{{p}}")
    for layer in (_FILE, _MEMORY)
    for theirs, ours in (
        *((f"self_attn.{part}_proj", f"self_attn.{part}_proj") for part in ("q", "k", "v", "out")),
        ("self_attn.o_proj", "self_attn.out_proj"),
        ("self_attn_layer_norm", "self_attn_norm"),
        ("fc1", "ffn.linear1"),
        ("fc2", "ffn.linear2"),
        ("mlp.fc1", "ffn.linear1"),
        ("mlp.fc2", "ffn.linear2"),
        ("mlp.layers.0", "ffn.linear1"),  # D-FINE's
        ("mlp.layers.1", "ffn.linear2"),
        ("final_layer_norm", "ffn_norm"),
    )
)
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


_COMMON = (*_PROJECTIONS, *_ENCODER, *_convs("model.encoder.lateral_convs.{i}", "neck.laterals.{i}"))
_PLACES = (
    ("model.encoder.fpn_blocks.{i}", "neck.top_down.{i}"),
    ("model.encoder.pan_blocks.{i}", "neck.bottom_up.{i}"),
)
_DOWNSAMPLE = ("model.encoder.downsample_convs.{i}", "neck.downsample.{i}")

# By the neck's `fusion`; transformers' names start with `model.`, as those of `RTDetrForObjectDetection` do.
HYBRID_ENCODER: dict[str, Names] = {
    "csp_rep": (
        *_COMMON,
        *_convs(*_DOWNSAMPLE),
        *(pair for theirs, ours in _PLACES for pair in _csp_rep(theirs, ours)),
    ),
    "elan": (
        *_COMMON,
        *(
            pair
            for number in range(2)
            for pair in _convs(f"{_DOWNSAMPLE[0]}.conv{number + 1}", f"{_DOWNSAMPLE[1]}.{number}")
        ),
        *(pair for theirs, ours in _PLACES for pair in _elan(theirs, ours)),
    ),
}
