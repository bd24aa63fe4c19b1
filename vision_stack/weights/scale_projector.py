"""Names of the projector in transformers' RF-DETR and LW-DETR, and so of the checkpoints published in their format, in
a `VisionModel` with `neck=scale_projector`. Heads and backbones have names of their own."""

from __future__ import annotations

from vision_stack.weights.renaming import Names


def _c2f(theirs: str, ours: str, first: str, second: str, blocks: str, norm: str) -> Names:
    places = (
        (f"{theirs}.{first}", f"{ours}.split"),
        (f"{theirs}.{second}", f"{ours}.merge"),
        (f"{theirs}.{blocks}.{{j}}.{first}", f"{ours}.blocks.{{j}}.0"),
        (f"{theirs}.{blocks}.{{j}}.{second}", f"{ours}.blocks.{{j}}.1"),
    )
    return tuple(
        (f"{a}.{part}.{{p}}", f"{b}.{own}.{{p}}") for a, b in places for part, own in (("conv", "conv"), (norm, "norm"))
    )


def _in_memory(theirs: str, ours: str) -> Names:
    return (
        *_c2f(f"{theirs}.projector_layer", f"{ours}.block", "conv1", "conv2", "bottlenecks", "norm"),
        (f"{theirs}.layer_norm.{{p}}", f"{ours}.norm.{{p}}"),
    )


def _lw_detr(level: int) -> Names:
    theirs, ours = f"model.backbone.projector.scale_layers.{level}", f"neck.levels.{level}"
    return (
        *_in_memory(theirs, ours),
        (f"{theirs}.sampling_layers.{{i}}.layers.{{j}}.{{p}}", f"{ours}.sampling.{{i}}.{{j}}.{{p}}"),
        *(
            (f"{theirs}.sampling_layers.{{i}}.layers.{{j}}.{part}.{{p}}", f"{ours}.sampling.{{i}}.{{j}}.{part}.{{p}}")
            for part in ("conv", "norm")
        ),
    )


# By transformers' `model_type`. RF-DETR's files have the names of its authors, which come first; in memory they differ.
SCALE_PROJECTOR: dict[str, Names] = {
    "rf_detr": (
        *_c2f("backbone.0.projector.stages.0.0", "neck.levels.0.block", "cv1", "cv2", "m", "bn"),
        ("backbone.0.projector.stages.0.1.{p}", "neck.levels.0.norm.{p}"),
        *_in_memory("model.backbone.projector", "neck.levels.0"),
    ),
    "lw_detr": tuple(pair for level in range(3) for pair in _lw_detr(level)),
}
