"""Names of ResNet and of RT-DETR's ResNet in transformers' layout and in timm's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, rename, to_ours, to_theirs

_CONVOLUTIONS = {
    **{f"layer.{k}.convolution": f"conv{k + 1}" for k in range(3)},
    **{f"layer.{k}.normalization": f"bn{k + 1}" for k in range(3)},
}
_PARTS = {"shortcut.convolution": "downsample.0", "shortcut.normalization": "downsample.1", **_CONVOLUTIONS}
_NAMES: Names = (
    ("embedder.embedder.convolution.{p}", "conv1.{p}"),
    ("embedder.embedder.normalization.{p}", "bn1.{p}"),
    *(
        (f"encoder.stages.{stage}.layers.{{j}}.{theirs}.{{p}}", f"layer{stage + 1}.{{j}}.{ours}.{{p}}")
        for stage in range(4)
        for theirs, ours in _PARTS.items()
    ),
)
_RT_DETR_STEM = {  # three convolutions, the last norm where timm's plain stem has it
    f"{k}.{part}": "bn1" if (k, number) == (2, 1) else f"conv1.{3 * k + number}"
    for k in range(3)
    for number, part in enumerate(("convolution", "normalization"))
}
_RT_DETR_NAMES: Names = (
    *((f"embedder.embedder.{theirs}.{{p}}", f"{ours}.{{p}}") for theirs, ours in _RT_DETR_STEM.items()),
    *(
        (f"encoder.stages.{stage}.layers.{{j}}.{theirs}.{{p}}", f"layer{stage + 1}.{{j}}.{ours}.{{p}}")
        for stage in range(4)
        for theirs, ours in (
            # After the pooling, which the first stage has not.
            (f"shortcut{'.1' if stage else ''}.convolution", "downsample.1"),
            (f"shortcut{'.1' if stage else ''}.normalization", "downsample.2"),
            *_CONVOLUTIONS.items(),
        )
    ),
)


def convert_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ResNetModel` -> timm's `ResNet`."""
    return rename(state, to_ours(_NAMES))


def export_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_resnet`."""
    return rename(state, to_theirs(_NAMES))


def convert_rt_detr_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `RTDetrResNetBackbone` -> timm's `ResNet` with a deep stem and pooling in its shortcuts."""
    return rename(state, to_ours(_RT_DETR_NAMES))


def export_rt_detr_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_rt_detr_resnet`."""
    return rename(state, to_theirs(_RT_DETR_NAMES))
