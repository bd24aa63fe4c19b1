"""Names of transformers' Mask2Former (`Mask2FormerForUniversalSegmentation`), and so of the checkpoints published in
its format, in a `VisionModel` with the `ms_deform` neck and the `mask2former` head; the backbone has names of its
own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_stack.weights.encoder import UNUSED
from vision_stack.weights.renaming import Names, join_parts, rename, split_part, to_ours, to_theirs

_PIXEL = "model.pixel_level_module.decoder."
_PIXEL_LAYER = f"{_PIXEL}encoder.layers.{{i}}."
_DECODER = "model.transformer_module."
_LAYER = f"{_DECODER}decoder.layers.{{i}}."
_CROSS = "cross_attn.in_proj_"  # query, key and value in one

_NAMES: Names = (
    (f"{_PIXEL}level_embed", "neck.level_embed.weight"),
    (f"{_PIXEL}input_projections.{{i}}.0.{{p}}", "neck.input_projections.{i}.conv.{p}"),
    (f"{_PIXEL}input_projections.{{i}}.1.{{p}}", "neck.input_projections.{i}.norm.{p}"),
    (f"{_PIXEL}adapter_1.0.{{p}}", "neck.lateral.conv.{p}"),
    (f"{_PIXEL}adapter_1.1.{{p}}", "neck.lateral.norm.{p}"),
    (f"{_PIXEL}layer_1.0.{{p}}", "neck.output.conv.{p}"),
    (f"{_PIXEL}layer_1.1.{{p}}", "neck.output.norm.{p}"),
    (f"{_PIXEL}mask_projection.{{p}}", "neck.mask_projection.{p}"),
    *(
        (f"{_PIXEL_LAYER}self_attn.{part}.{{p}}", f"neck.layers.{{i}}.attn.{part}.{{p}}")
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    (f"{_PIXEL_LAYER}self_attn_layer_norm.{{p}}", "neck.layers.{i}.attn_norm.{p}"),
    (f"{_PIXEL_LAYER}fc{{j}}.{{p}}", "neck.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_PIXEL_LAYER}final_layer_norm.{{p}}", "neck.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}queries_embedder.weight", "head.query_embed.weight"),
    (f"{_DECODER}queries_features.weight", "head.query_feat.weight"),
    (f"{_DECODER}level_embed.weight", "head.level_embed.weight"),
    (f"{_DECODER}input_projections.{{i}}.{{p}}", "head.input_projections.{i}.{p}"),
    *(
        (f"{_LAYER}self_attn.{part}_proj.{{p}}", f"head.layers.{{i}}.self_attn.{part}_proj.{{p}}")
        for part in ("q", "k", "v", "out")
    ),
    *(
        (f"{_LAYER}{_CROSS}{{p}}#{number}", f"head.layers.{{i}}.cross_attn.{part}_proj.{{p}}")
        for number, part in enumerate("qkv")
    ),
    (f"{_LAYER}cross_attn.out_proj.{{p}}", "head.layers.{i}.cross_attn.out_proj.{p}"),
    (f"{_LAYER}self_attn_layer_norm.{{p}}", "head.layers.{i}.self_attn_norm.{p}"),
    (f"{_LAYER}cross_attn_layer_norm.{{p}}", "head.layers.{i}.cross_attn_norm.{p}"),
    (f"{_LAYER}fc{{j}}.{{p}}", "head.layers.{i}.ffn.linear{j}.{p}"),
    (f"{_LAYER}final_layer_norm.{{p}}", "head.layers.{i}.ffn_norm.{p}"),
    (f"{_DECODER}decoder.layernorm.{{p}}", "head.decoder_norm.{p}"),
    (f"{_DECODER}decoder.mask_predictor.mask_embedder.{{i}}.0.{{p}}", "head.mask_embed.layers.{i}.{p}"),
    ("class_predictor.{p}", "head.class_embed.{p}"),
)


def convert_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' Mask2Former, as its files have it, without the backbone -> that of neck and head.

    Raises:
        ValueError: a key that this architecture does not have.
    """
    return rename(split_part(state, _CROSS, 3), (*to_ours(_NAMES), UNUSED))


def export_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `convert_decoder`."""
    return join_parts(rename(state, to_theirs(_NAMES)))
