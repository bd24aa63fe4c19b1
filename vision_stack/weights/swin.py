"""Key maps of Swin and Swin V2 from transformers' layout to timm's own (`SwinTransformer`, `SwinTransformerV2`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.renaming import Rules, join_parts, rename

_BLOCK = r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_PARTS = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_COMMON: Rules = (
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    # transformers has the patch merging at the end of a stage, timm at the start of the next.
    (r"encoder\.layers\.(\d+)\.downsample\.(.+)", lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    *((rf"{_BLOCK}{re.escape(theirs)}\.(\w+)", rf"layers.\1.blocks.\2.{ours}.\3") for theirs, ours in _PARTS.items()),
    (r".+\.relative_(position_index|coords_table)", None),  # these follow from the window size
)
_SWIN: Rules = (
    *_COMMON,
    *(
        (rf"{_BLOCK}attention\.self\.{part}\.(\w+)", rf"layers.\1.blocks.\2.attn.qkv.\3#{i}")
        for i, part in enumerate(("query", "key", "value"))
    ),
    (rf"{_BLOCK}attention\.self\.(relative_position_bias_table)", r"layers.\1.blocks.\2.attn.\3"),
)
_SWINV2: Rules = (
    *_COMMON,
    *(
        (rf"{_BLOCK}attention\.self\.{part}\.weight", rf"layers.\1.blocks.\2.attn.qkv.weight#{i}")
        for i, part in enumerate(("query", "key", "value"))
    ),
    (rf"{_BLOCK}attention\.self\.query\.bias", r"layers.\1.blocks.\2.attn.q_bias"),  # keys have none
    (rf"{_BLOCK}attention\.self\.value\.bias", r"layers.\1.blocks.\2.attn.v_bias"),
    (rf"{_BLOCK}attention\.self\.continuous_position_bias_mlp\.(.+)", r"layers.\1.blocks.\2.attn.cpb_mlp.\3"),
    (rf"{_BLOCK}attention\.self\.(logit_scale)", r"layers.\1.blocks.\2.attn.\3"),
)


def convert_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `SwinModel` -> timm's `SwinTransformer`."""
    return join_parts(rename(state, _SWIN))


def convert_swinv2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' `Swinv2Model` -> timm's `SwinTransformerV2`."""
    return join_parts(rename(state, _SWINV2))
