"""Names of Swin and Swin V2 in transformers' layout and in timm's own (`SwinTransformer`, `SwinTransformerV2`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Names, Rules, join_parts, rename, split_part, to_ours, to_theirs

_THEIRS, _OURS = "encoder.layers.{i}.blocks.{j}.", "layers.{i}.blocks.{j}."
_QKV = ("query", "key", "value")  # in timm one matrix
_PARTS = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_COMMON: Names = (
    ("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
    ("embeddings.norm.{p}", "patch_embed.norm.{p}"),
    *((f"{_THEIRS}{theirs}.{{p}}", f"{_OURS}{ours}.{{p}}") for theirs, ours in _PARTS.items()),
    # transformers has the patch merging at the end of a stage, timm at the start of the next.
    *(
        (f"encoder.layers.{stage}.downsample.{part}.{{p}}", f"layers.{stage + 1}.downsample.{part}.{{p}}")
        for stage in range(6)
        for part in ("reduction", "norm")
    ),
)
_SWIN: Names = (
    *_COMMON,
    *((f"{_THEIRS}attention.self.{part}.{{p}}", f"{_OURS}attn.qkv.{{p}}#{i}") for i, part in enumerate(_QKV)),
    (f"{_THEIRS}attention.self.relative_position_bias_table", f"{_OURS}attn.relative_position_bias_table"),
)
_DERIVED: Rules = ((r".+\.relative_(position_index|coords_table)", None),)  # follow from the window size
_SELF = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.self\."
_SWINV2: Rules = (
    *to_ours(_COMMON),
    *_DERIVED,
    *((rf"{_SELF}{part}\.weight", rf"layers.\1.blocks.\2.attn.qkv.weight#{i}") for i, part in enumerate(_QKV)),
    (rf"{_SELF}query\.bias", r"layers.\1.blocks.\2.attn.q_bias"),  # keys have none
    (rf"{_SELF}value\.bias", r"layers.\1.blocks.\2.attn.v_bias"),
    (rf"{_SELF}continuous_position_bias_mlp\.(.+)", r"layers.\1.blocks.\2.attn.cpb_mlp.\3"),
    (rf"{_SELF}(logit_scale)", r"layers.\1.blocks.\2.attn.\3"),
)


def convert_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `SwinModel` -> timm's `SwinTransformer`."""
    return join_parts(rename(state, (*to_ours(_SWIN), *_DERIVED)))


def export_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_swin`, also of timm's extractor, which has `layers_0` for `layers.0`."""
    plain = {re.sub(r"^layers_(\d+)", r"layers.\1", key): value for key, value in state.items()}
    return rename(split_part(plain, ".attn.qkv.", len(_QKV)), to_theirs(_SWIN))


def convert_swinv2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Swinv2Model` -> timm's `SwinTransformerV2`."""
    return join_parts(rename(state, _SWINV2))
