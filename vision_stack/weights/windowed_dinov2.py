"""Names of RF-DETR's windowed DINOv2 in transformers' layout and in timm's `VisionTransformer`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

_THEIRS, _OURS = "encoder.layer.{i}.", "blocks.{i}."
_QKV = ("query", "key", "value")  # in timm one matrix
_PARTS = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "attention.o_proj": "attn.proj",  # this and the next of a model in memory
    "mlp.down_proj": "mlp.fc2",
}
_NAMES: Names = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    ("layernorm.{p}", "norm.{p}"),
    *((f"{_THEIRS}layer_scale{n}.lambda1", f"{_OURS}ls{n}.gamma") for n in (1, 2)),
    *((f"{_THEIRS}attention.attention.{part}.{{p}}", f"{_OURS}attn.qkv.{{p}}#{n}") for n, part in enumerate(_QKV)),
    *((f"{_THEIRS}{theirs}.{{p}}", f"{_OURS}{ours}.{{p}}") for theirs, ours in _PARTS.items()),
    # Of a model in memory; SwiGLU has gate and value in one matrix, in this order.
    *((f"{_THEIRS}attention.{part}_proj.{{p}}", f"{_OURS}attn.qkv.{{p}}#{n}") for n, part in enumerate("qkv")),
    *((f"{_THEIRS}mlp.{part}_proj.{{p}}", f"{_OURS}mlp.fc1.{{p}}#{n}") for n, part in enumerate(("gate", "up"))),
)


def convert_windowed_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `RfDetrDinov2Backbone` -> timm's `VisionTransformer`."""
    return join_parts(rename(state, to_ours(_NAMES)))


def export_windowed_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_windowed_dinov2`, with the names of files."""
    return rename(split_part(state, ".attn.qkv.", len(_QKV)), to_theirs(_NAMES))
