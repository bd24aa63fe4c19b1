"""Names of ResNet in transformers' layout and in timm's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_PARTS = {
    "shortcut.convolution": "downsample.0",
    "shortcut.normalization": "downsample.1",
    **{f"layer.{k}.convolution": f"conv{k + 1}" for k in range(3)},
    **{f"layer.{k}.normalization": f"bn{k + 1}" for k in range(3)},
}
_NAMES: Names = (
    ("embedder.embedder.convolution.{p}", "conv1.{p}"),
    ("embedder.embedder.normalization.{p}", "bn1.{p}"),
    *(
        (f"encoder.stages.{stage}.layers.{{j}}.{theirs}.{{p}}", f"layer{stage + 1}.{{j}}.{ours}.{{p}}")
        for stage in range(4)
        for theirs, ours in _PARTS.items()
    ),
)


def convert_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ResNetModel` -> timm's `ResNet`."""
    return rename(state, to_ours(_NAMES))


def export_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_resnet`."""
    return rename(state, to_theirs(_NAMES))
