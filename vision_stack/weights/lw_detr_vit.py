"""Names of LW-DETR's ViT in transformers' layout and in timm's `VisionTransformer`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

_THEIRS, _OURS = "encoder.layer.{i}.", "blocks.{i}."
_QKV = ("query", "key", "value")  # in timm one matrix
_PARTS = {
    "layernorm_before": "norm1",
    "attention.output": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.fc1": "mlp.fc1",
    "intermediate.fc2": "mlp.fc2",
    "attention.o_proj": "attn.proj",  # of a model in memory
}
_POSITIONS = "embeddings.position_embeddings"  # of a class token first, which there is not
_NAMES: Names = (
    (_POSITIONS, "pos_embed"),
    ("embeddings.projection.{p}", "patch_embed.proj.{p}"),
    *((f"{_THEIRS}gamma_{n}", f"{_OURS}ls{n}.gamma") for n in (1, 2)),
    *((f"{_THEIRS}attention.attention.{part}.{{p}}", f"{_OURS}attn.qkv.{{p}}#{n}") for n, part in enumerate(_QKV)),
    *((f"{_THEIRS}{theirs}.{{p}}", f"{_OURS}{ours}.{{p}}") for theirs, ours in _PARTS.items()),
    *((f"{_THEIRS}attention.{part}_proj.{{p}}", f"{_OURS}attn.qkv.{{p}}#{n}") for n, part in enumerate("qkv")),
)


def convert_lw_detr_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `LwDetrViTBackbone` -> timm's `VisionTransformer` without class token."""
    parts = rename(state, to_ours(_NAMES))
    parts |= {f"{name[:-2]}#1": torch.zeros_like(x) for name, x in parts.items() if name.endswith("qkv.bias#0")}
    joined = join_parts(parts)
    if "pos_embed" in joined:
        joined["pos_embed"] = joined["pos_embed"][:, 1:]
    return joined


def export_lw_detr_vit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_lw_detr_vit`, with the names of files and a class token's position of zeros."""
    parts = split_part(state, ".attn.qkv.", len(_QKV))
    theirs = rename({name: x for name, x in parts.items() if not name.endswith("qkv.bias#1")}, to_theirs(_NAMES))
    positions = theirs[_POSITIONS]
    return theirs | {_POSITIONS: torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)}
