"""Key maps of ViT, DINOv2 (with and without registers) and DINOv3 from transformers' layout to timm's.

timm has one matrix for query, key and value; for DINOv3 (`Eva`) their biases apart, and none for keys.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vision_stack.weights.renaming import Names, Rules, join_parts, rename, split_part, to_ours, to_theirs

_EMBEDDINGS: Rules = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.(projection\.)?(weight|bias)", r"patch_embed.proj.\2"),
    (r"(layer)?norm\.(\w+)", r"norm.\2"),
)
_ATTENTION: Rules = (
    *(
        (rf"encoder\.layer\.(\d+)\.attention\.attention\.{part}\.(\w+)", rf"blocks.\1.attn.qkv.\2#{i}")
        for i, part in enumerate(("query", "key", "value"))
    ),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
)


def _layers(names: Mapping[str, str]) -> Rules:
    return tuple((rf"(?:encoder\.)?layer\.(\d+)\.{a}\.(\w+)", rf"blocks.\1.{b}.\2") for a, b in names.items())


_VIT: Rules = (
    *_EMBEDDINGS,
    *_ATTENTION,
    *_layers(
        {
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            r"intermediate\.dense": "mlp.fc1",
            r"output\.dense": "mlp.fc2",
        }
    ),
)
_DINOV2: Rules = (
    *_EMBEDDINGS,
    *_ATTENTION,
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    *_layers(
        {
            "norm1": "norm1",
            "norm2": "norm2",
            r"mlp\.fc1": "mlp.fc1",
            r"mlp\.fc2": "mlp.fc2",
            r"mlp\.weights_in": "mlp.fc1",  # SwiGLU: gate and value in one matrix, in this order
            r"mlp\.weights_out": "mlp.fc2",
        }
    ),
)
_LAYER, _BLOCK = "layer.{i}.", "blocks.{i}."
_DINOV3: Names = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
    ("norm.{p}", "norm.{p}"),
    *((f"{_LAYER}attention.{x}_proj.weight", f"{_BLOCK}attn.qkv.weight#{n}") for n, x in enumerate("qkv")),
    *((f"{_LAYER}attention.{x}_proj.bias", f"{_BLOCK}attn.{x}_bias") for x in "qkv"),
    (f"{_LAYER}attention.o_proj.{{p}}", f"{_BLOCK}attn.proj.{{p}}"),
    (f"{_LAYER}layer_scale{{j}}.lambda1", f"{_BLOCK}gamma_{{j}}"),
    (f"{_LAYER}norm{{j}}.{{p}}", f"{_BLOCK}norm{{j}}.{{p}}"),
    (f"{_LAYER}mlp.down_proj.{{p}}", f"{_BLOCK}mlp.fc2.{{p}}"),
)
_MLP: Names = ((f"{_LAYER}mlp.up_proj.{{p}}", f"{_BLOCK}mlp.fc1.{{p}}"),)
_GATED_MLP: Names = (
    (f"{_LAYER}mlp.gate_proj.{{p}}", f"{_BLOCK}mlp.fc1_g.{{p}}"),
    (f"{_LAYER}mlp.up_proj.{{p}}", f"{_BLOCK}mlp.fc1_x.{{p}}"),
)


def convert_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `ViTModel` -> timm's `VisionTransformer`."""
    return join_parts(rename(state, _VIT))


def convert_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Dinov2Model` -> timm's `VisionTransformer`."""
    return join_parts(rename(state, _DINOV2))


def convert_dinov2_with_registers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Dinov2WithRegistersModel` -> timm's `VisionTransformer` with `no_embed_class`."""
    converted = convert_dinov2(state)
    positions = converted["pos_embed"]
    converted["cls_token"] = converted["cls_token"] + positions[:, :1]
    converted["pos_embed"] = positions[:, 1:]
    return converted


def convert_dinov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `DINOv3ViTModel` -> timm's `Eva`."""
    gated = any(".mlp.gate_proj." in name for name in state)
    state = {name: value for name, value in state.items() if value.numel()}  # there may be zero registers
    return join_parts(rename(state, to_ours((*_DINOV3, *(_GATED_MLP if gated else _MLP)))))


def export_dinov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_dinov3`, with what transformers has besides: a mask token, a norm, zero registers."""
    split = split_part(state, ".attn.qkv.", len("qkv"))
    gated = any(".mlp.fc1_g." in name for name in state)
    theirs = rename(split, to_theirs((*_DINOV3, *(_GATED_MLP if gated else _MLP))))
    token = theirs["embeddings.cls_token"]
    besides = {
        "embeddings.mask_token": torch.zeros_like(token),
        "embeddings.register_tokens": token[:, :0],
        "norm.weight": torch.ones_like(token[0, 0]),
        "norm.bias": torch.zeros_like(token[0, 0]),
    }
    return besides | theirs
