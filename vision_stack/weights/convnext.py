"""Key maps of ConvNeXt, ConvNeXt V2 and DINOv3's ConvNeXt from transformers' layout to timm's `ConvNeXt`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Rules, rename

_PARTS = {
    "dwconv": "conv_dw",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "grn": "mlp.grn",
    "pwconv2": "mlp.fc2",
}
_CONVNEXT: Rules = (
    (r"embeddings\.patch_embeddings\.(\w+)", r"stem.0.\1"),
    (r"embeddings\.layernorm\.(\w+)", r"stem.1.\1"),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.(\d+)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    *(
        (rf"encoder\.stages\.(\d+)\.layers\.(\d+)\.{theirs}\.(\w+)", rf"stages.\1.blocks.\2.{ours}.\3")
        for theirs, ours in _PARTS.items()
    ),
)

_DINOV3_PARTS = {
    "depthwise_conv": "conv_dw",
    "layer_norm": "norm",
    "pointwise_conv1": "mlp.fc1",
    "pointwise_conv2": "mlp.fc2",
}
_DINOV3: Rules = (
    (r"stages\.0\.downsample_layers\.(\d+)\.(\w+)", r"stem.\1.\2"),
    (r"stages\.(\d+)\.downsample_layers\.(\d+)\.(\w+)", r"stages.\1.downsample.\2.\3"),
    (r"stages\.(\d+)\.layers\.(\d+)\.gamma", r"stages.\1.blocks.\2.gamma"),
    *(
        (rf"stages\.(\d+)\.layers\.(\d+)\.{theirs}\.(\w+)", rf"stages.\1.blocks.\2.{ours}.\3")
        for theirs, ours in _DINOV3_PARTS.items()
    ),
)


def convert_convnext(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ConvNextModel` or `ConvNextV2Model` -> timm's `ConvNeXt`."""
    renamed = rename(state, _CONVNEXT)
    return {name: value.flatten() if ".grn." in name else value for name, value in renamed.items()}


def convert_dinov3_convnext(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `DINOv3ConvNextModel` -> timm's `ConvNeXt`."""
    return rename(state, _DINOV3)
