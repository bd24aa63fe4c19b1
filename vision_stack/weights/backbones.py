"""Key maps of backbones from transformers' layout to timm's, the layout of `TimmBackbone`'s inner model.

Each takes and gives a state dict without any prefix; the tensors are shared, but for Swin's fused qkv.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vision_stack.weights.renaming import Rules, rename

_RESNET_PARTS = {"convolution": "conv", "normalization": "bn"}
_SHORTCUT_PARTS = {"convolution": "0", "normalization": "1"}
_RESNET: Rules = (
    (r"embedder\.embedder\.(convolution|normalization)\.(\w+)", lambda m: f"{_RESNET_PARTS[m[1]]}1.{m[2]}"),
    (
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(convolution|normalization)\.(\w+)",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{_SHORTCUT_PARTS[m[3]]}.{m[4]}",
    ),
    (
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(convolution|normalization)\.(\w+)",
        lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{_RESNET_PARTS[m[4]]}{int(m[3]) + 1}.{m[5]}",
    ),
)

_SWIN_PARTS = {
    "layernorm_before": "norm1",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.self.qkv": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_SWIN: Rules = (
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    # transformers has the patch merging at the end of a stage, timm at the start of the next.
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", lambda m: f"layers_{int(m[1]) + 1}.downsample.{m[2]}"),
    *(
        (rf"encoder\.layers\.(\d+)\.blocks\.(\d+)\.{re.escape(part)}(\.\w+)?", rf"layers_\1.blocks.\2.{ours}\3")
        for part, ours in _SWIN_PARTS.items()
    ),
    (r".+\.relative_position_index", None),  # follows from the window size
    (r"layernorm\.(\w+)", None),  # of the classifier, behind the last map
)


def convert_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ResNetBackbone` or `ResNetModel` -> timm's resnet."""
    return rename(state, _RESNET)


def convert_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `SwinModel` or `MaskFormerSwinModel` -> timm's swin, built with `features_only`."""
    return rename(_fuse_qkv(state), _SWIN)


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of each attention under one key, in that order."""
    fused = {}
    for key, value in state.items():
        if ".attention.self.query." in key:
            parts = (state[key.replace(".query.", f".{part}.")] for part in ("query", "key", "value"))
            fused[key.replace(".query.", ".qkv.")] = torch.cat(list(parts))
        elif ".attention.self.key." not in key and ".attention.self.value." not in key:
            fused[key] = value
    return fused


UNUSED = (r"criterion\.empty_weight", None)  # the weights of the classes in the loss
ENCODER = "model.pixel_level_module.encoder."  # of the backbone's names, in transformers' MaskFormer and Mask2Former


def split_encoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of transformers' MaskFormer or Mask2Former -> that of its backbone, without prefix, and the rest.

    The backbone's names become those of transformers' backbone classes, also where MaskFormer's Swin has its own.
    """
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    rest = {key: value for key, value in state.items() if not key.startswith(ENCODER)}
    return {_plain(key): value for key, value in encoder.items()}, rest


def _plain(key: str) -> str:
    norm = re.fullmatch(r"hidden_states_norms\.(\d+)\.(\w+)", key)
    return f"hidden_states_norms.stage{int(norm[1]) + 1}.{norm[2]}" if norm else key.removeprefix("model.")


def convert_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of transformers' MaskFormer or Mask2Former (`split_encoder`) -> a `TimmBackbone` in a `VisionModel`.

    It may be transformers' ResNet or Swin (whose norms of the maps become `out_norms`) or one of timm's.
    """
    if any(key.startswith("hidden_states_norms.") for key in state):
        norms = {k: v for k, v in state.items() if k.startswith("hidden_states_norms.")}
        body = {k: v for k, v in state.items() if k not in norms}
        converted = {f"net.{k}": v for k, v in convert_swin(body).items()}
        return {f"backbone.{k}": v for k, v in (converted | rename(norms, _OUT_NORMS)).items()}
    if any(key.startswith("_backbone.") for key in state):
        return {f"backbone.net.{k.removeprefix('_backbone.')}": v for k, v in state.items()}
    return {f"backbone.net.{k}": v for k, v in convert_resnet(state).items()}


_OUT_NORMS: Rules = ((r"hidden_states_norms\.stage(\d+)\.(\w+)", lambda m: f"norms.{int(m[1]) - 1}.{m[2]}"),)
