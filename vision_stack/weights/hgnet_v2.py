"""Names of HGNetV2 in transformers' layout and in timm's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_PARTS = {"convolution": "conv", "normalization": "bn", "lab": "lab"}
_BLOCK = "blocks.{i}."
_CONVOLUTIONS = (  # within a stage
    "downsample",
    f"{_BLOCK}layers.{{j}}",
    *(f"{_BLOCK}layers.{{j}}.conv{n}" for n in (1, 2)),
    f"{_BLOCK}aggregation.{{j}}",
)
_NAMES: Names = tuple(
    (f"{theirs}.{part}.{{p}}", f"{ours}.{own}.{{p}}")
    for theirs, ours in (
        *((f"embedder.stem{name}", f"stem.stem{name}") for name in ("1", "2a", "2b", "3", "4")),
        *((f"encoder.stages.{n}.{place}", f"stages.{n}.{place}") for n in range(4) for place in _CONVOLUTIONS),
    )
    for part, own in _PARTS.items()
)


def convert_hgnet_v2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `HGNetV2Backbone` -> timm's `HighPerfGpuNet`."""
    return rename(state, to_ours(_NAMES))


def export_hgnet_v2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_hgnet_v2`."""
    return rename(state, to_theirs(_NAMES))
